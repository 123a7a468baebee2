//! Steps as a Chrome trace: a process for each step, a track for the host and one for each worker, events inside events.
//!
//! The format is the JSON array of complete events ("X") of the Trace Event Format; times are microseconds since the
//! step's begin.

use std::time::Instant;

use lathe_plan::program::Program;
use lathe_runtime::device::timeline::Work;
use lathe_runtime::engine::StepRecord;
use serde_json::{Value, json};

/// The trace of some steps by name.
pub fn write(program: &Program, steps: &[(&str, &StepRecord)]) -> Value {
    let mut events = Vec::new();
    for (process, (name, step)) in (1..).zip(steps) {
        let mut track = Track { process, thread: 0, begin: step.begin, events: &mut events };
        track.name("process_name", name);
        host(&mut track, name, step);
        for (worker, spans) in step.device.workers.iter().enumerate() {
            track.thread = worker + 1;
            track.name("thread_name", &format!("worker {worker}"));
            let (Some(first), Some(last)) = (spans.first(), spans.last()) else { continue };
            track.event(name, first.start, last.end, &json!({}));
            for span in spans {
                let (name, args) = match span.work {
                    Work::BringIn => ("bring in", json!({})),
                    Work::Wait => ("wait", json!({})),
                    Work::Sample => ("sample", json!({})),
                    Work::HandOver => ("hand over", json!({})),
                    Work::Launch(index) => launch(program, step, index),
                };
                track.event(name, span.start, span.end, &args);
            }
        }
    }
    json!({ "traceEvents": events, "displayTimeUnit": "ms" })
}

fn host(track: &mut Track, name: &str, step: &StepRecord) {
    track.name("thread_name", "host");
    let size = json!({ "tokens": step.size.tokens, "sequences": step.size.sequences, "rows": step.size.rows });
    track.event(name, step.begin, step.end, &size);
    track.event("compose", step.begin, step.composed, &json!({}));
    track.event("device", step.composed, step.collected, &json!({}));
    track.event("retire", step.collected, step.end, &json!({}));
}

/// A launch's kernel and what it costs.
fn launch<'a>(program: &'a Program, step: &StepRecord, index: usize) -> (&'a str, Value) {
    let launch = &program.buckets[step.device.bucket].launches[index];
    let args = json!({
        "launch": index,
        "bytes": launch.bytes.eval(step.size),
        "operations": launch.flops.eval(step.size),
    });
    (&program.kernels[launch.kernel as usize].name, args)
}

/// Where events go.
struct Track<'a> {
    process: usize,
    thread: usize,
    begin: Instant,
    events: &'a mut Vec<Value>,
}

impl Track<'_> {
    fn name(&mut self, what: &str, name: &str) {
        let (pid, tid) = (self.process, self.thread);
        self.events.push(json!({ "ph": "M", "name": what, "pid": pid, "tid": tid, "args": { "name": name } }));
    }

    fn event(&mut self, name: &str, start: Instant, end: Instant, args: &Value) {
        let since = |time: Instant| time.saturating_duration_since(self.begin).as_nanos() as f64 / 1e3;
        let (ts, dur) = (since(start), since(end) - since(start));
        let (pid, tid) = (self.process, self.thread);
        self.events
            .push(json!({ "ph": "X", "name": name, "pid": pid, "tid": tid, "ts": ts, "dur": dur, "args": args }));
    }
}
