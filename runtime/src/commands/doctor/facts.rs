//! What this machine has, and what a plan needs.

use lathe_plan::Plan;
use lathe_runtime::device::cpu::quota::{self, Read};
use lathe_runtime::device::cpu::topology::{self, Cpus};
use lathe_runtime::device::cuda;
use lathe_runtime::device::options::DeviceOptions;
use lathe_runtime::device::{
    cpu::{self, features},
    room,
};
use serde::Serialize;

/// Features that code for CPUs asks for or profits from.
const FEATURES: &[&str] = &[
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512_vnni",
    "avx512_bf16",
    "avx_vnni",
    "avx512_fp16",
];

/// A machine.
#[derive(Clone, Debug, Serialize)]
pub struct Facts {
    /// The CPU's name.
    pub cpu: String,
    /// Those of [`FEATURES`] that it has.
    pub features: Vec<&'static str>,
    /// CPUs (hardware threads) that the process may use.
    pub cpus: usize,
    /// Physical cores among them.
    pub cores: usize,
    /// CPU time that a container's quota leaves, in CPUs.
    pub quota: Option<f64>,
    /// Workers that run unless told otherwise.
    pub threads: usize,
    /// The frequency governor, where the system shows it.
    pub governor: Option<String>,
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Bytes that may still be taken, by the machine and the container.
    pub memory_left: Option<u64>,
    /// When memory comes in pages of 2 MiB: `always`, `madvise` or `never`.
    pub huge_pages: Option<String>,
    /// The first GPU, or why there is none.
    pub gpu: Gpu,
}

/// What CUDA's driver says.
#[derive(Clone, Debug, Serialize)]
pub struct Gpu {
    /// Its name.
    pub name: Option<String>,
    /// Its compute capability, times ten.
    pub capability: Option<u32>,
    /// Why there is none.
    pub problem: Option<String>,
}

impl Facts {
    /// Those of this machine.
    pub fn here() -> Facts {
        let features = FEATURES.iter().copied().filter(|feature| features::has(feature)).collect();
        let gpu = match cuda::describe(0) {
            Ok((name, capability)) => Gpu { name: Some(name), capability: Some(capability), problem: None },
            Err(error) => Gpu { name: None, capability: None, problem: Some(error.to_string()) },
        };
        Facts::of(&quota::file, &Cpus::here(), features, gpu)
    }

    /// Those of a machine of these files.
    pub fn of(read: Read, cpus: &Cpus, features: Vec<&'static str>, gpu: Gpu) -> Facts {
        let line = |path: &str| read(path).map(|text| text.trim().to_owned());
        // The choice that holds is in brackets: `always [madvise] never`.
        let huge = line("/sys/kernel/mm/transparent_hugepage/enabled");
        let chosen = |text: String| Some(text.split_once('[')?.1.split_once(']')?.0.to_owned());
        Facts {
            cpu: topology::name(read),
            features,
            cpus: cpus.order.len(),
            cores: cpus.cores,
            quota: cpus.quota,
            threads: cpus.workers(None).map_or(1, |workers| workers.count),
            governor: line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            memory: read("/proc/meminfo").and_then(|text| quota::field(&text, "MemTotal:")).map(|kib| kib << 10),
            memory_left: quota::memory_left(read),
            huge_pages: huge.and_then(chosen),
            gpu,
        }
    }

    /// Whether the CPU runs the least demanding code that there is.
    pub fn runs_plans(&self) -> bool {
        ["avx2", "fma", "f16c"].iter().all(|feature| self.features.contains(feature))
    }
}

/// A plan, as seen from a machine.
#[derive(Clone, Debug, Serialize)]
pub struct PlanFacts {
    /// Its targets.
    pub targets: Vec<TargetFacts>,
    /// The target that runs unless told otherwise, if one does.
    pub chosen: Option<String>,
    /// Bytes that it needs on a CPU, with the default cache.
    pub needs: u64,
    /// Why it does not fit into memory.
    pub too_large: Option<String>,
}

/// One kind of code in a plan.
#[derive(Clone, Debug, Serialize)]
pub struct TargetFacts {
    /// Its name.
    pub target: String,
    /// Why it does not run here; `None` where it does.
    pub problem: Option<String>,
}

impl PlanFacts {
    /// What a plan's main program needs, on a machine of these facts.
    pub fn of(plan: &Plan, facts: &Facts) -> PlanFacts {
        let targets = plan.codes("main").map(|code| {
            let problem = match cuda::capability(&code.object) {
                Some(needed) => gpu_problem(needed, &facts.gpu),
                None => cpu_problem(&code.object.features, &features::has),
            };
            TargetFacts { target: code.object.target.clone(), problem }
        });
        let targets: Vec<TargetFacts> = targets.collect();
        let codes: Vec<_> = plan.codes("main").collect();
        let is_gpu_plan = codes.iter().any(|code| cuda::capability(&code.object).is_some());
        let chosen = if is_gpu_plan {
            targets.iter().rfind(|target| target.problem.is_none()).map(|target| target.target.clone())
        } else {
            features::choose(&codes, None, features::has).ok().map(|code| code.object.target.clone())
        };
        let needs = plan
            .program("main")
            .map(|program| cpu::needs(program, &DeviceOptions::default(), facts.threads, facts.memory_left));
        PlanFacts {
            targets,
            chosen,
            needs: needs.map_or(0, room::Needs::total),
            too_large: needs.and_then(|needs| needs.fit(facts.memory_left).err()).map(|error| error.to_string()),
        }
    }

    /// Whether some code runs.
    pub fn runs(&self) -> bool {
        self.chosen.is_some()
    }
}

/// Why code that needs these features does not run on a CPU.
fn cpu_problem(needed: &[String], has: &dyn Fn(&str) -> bool) -> Option<String> {
    let missing: Vec<&str> = needed.iter().map(String::as_str).filter(|feature| !has(feature)).collect();
    (!missing.is_empty()).then(|| format!("this CPU lacks {}", missing.join(", ")))
}

/// Why code that needs a compute capability does not run on a GPU.
fn gpu_problem(needed: u32, gpu: &Gpu) -> Option<String> {
    match gpu.capability {
        Some(found) if found >= needed => None,
        Some(found) => Some(format!("the GPU is sm_{found}, older than it needs")),
        None => gpu.problem.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_read_from_the_system_s_files() {
        let read = |path: &str| {
            let text = match path {
                "/proc/cpuinfo" => "processor : 0\nmodel name\t: A CPU of sorts\nflags : x\n",
                "/proc/meminfo" => "MemTotal: 4 kB\nMemAvailable: 3 kB\n",
                "/sys/kernel/mm/transparent_hugepage/enabled" => "always madvise [never]\n",
                "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor" => "powersave\n",
                _ => return None,
            };
            Some(text.to_owned())
        };
        let cpus = Cpus { cores: 2, order: vec![0, 1, 2, 3], quota: Some(1.5) };
        let gpu = Gpu { name: None, capability: None, problem: Some("none".into()) };
        let facts = Facts::of(&read, &cpus, vec!["avx2"], gpu);
        assert_eq!(facts.cpu, "A CPU of sorts");
        assert_eq!((facts.cpus, facts.cores, facts.threads), (4, 2, 1));
        assert_eq!((facts.memory, facts.memory_left), (Some(4096), Some(3072)));
        assert_eq!(facts.huge_pages.as_deref(), Some("never"));
        assert_eq!(facts.governor.as_deref(), Some("powersave"));
        assert!(!facts.runs_plans());
    }

    #[test]
    fn a_target_s_problem_names_what_is_missing() {
        let needed = ["avx2".to_owned(), "avx512f".to_owned(), "amx".to_owned()];
        let problem = cpu_problem(&needed, &|feature| feature == "avx2");
        assert_eq!(problem.as_deref(), Some("this CPU lacks avx512f, amx"));
        assert_eq!(cpu_problem(&needed, &|_| true), None);
        let gpu = |capability| Gpu { name: None, capability, problem: Some("no driver".into()) };
        assert_eq!(gpu_problem(80, &gpu(Some(90))), None);
        assert!(gpu_problem(80, &gpu(Some(75))).is_some_and(|problem| problem.contains("sm_75")));
        assert_eq!(gpu_problem(80, &gpu(None)).as_deref(), Some("no driver"));
    }
}
