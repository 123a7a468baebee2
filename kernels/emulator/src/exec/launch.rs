//! A launch: checks its sizes, then runs CTAs on host threads. A thread keeps every CTA that it began, and gives each a
//! round in turn, so CTAs that wait for each other meet; it begins new ones while old ones are quiet.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::cta::{Cta, Round};
use super::op::Kernel;
use super::warp::Place;
use crate::activity::Activity;
use crate::chip::Chip;
use crate::counters::Counters;
use crate::fault::{Fault, FaultKind};
use crate::memory::Memory;
use crate::module::Device;
use crate::region::Region;

/// How a kernel is launched.
#[derive(Clone, Debug)]
pub struct Launch<'a> {
    /// CTAs in each direction.
    pub grid: [u32; 3],
    /// Threads of a CTA in each direction.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared_bytes: u32,
    /// The parameters, laid out as the kernel declares them.
    pub params: &'a [u8],
    /// What is checked, and limits.
    pub options: Options,
}

/// Checks and limits of a launch.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whether reads of memory that nothing wrote, and races, are faults.
    pub checks: bool,
    /// The most instructions of warps in all.
    pub step_limit: u64,
    /// Host threads; one makes the order of CTAs, and so of their atomics, the same each time.
    pub threads: usize,
    /// Who else may change the memory that the kernel waits for; nobody where nothing is given.
    pub activity: Option<Arc<Activity>>,
}

impl Default for Options {
    fn default() -> Options {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Options { checks: true, step_limit: 1 << 40, threads, activity: None }
    }
}

/// What all CTAs of a launch share.
pub(crate) struct Grid<'a> {
    pub(crate) kernel: &'a Kernel,
    pub(crate) size: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) chip: Chip,
    pub(crate) params: &'a [u8],
    pub(crate) memory: &'a Memory,
    pub(crate) regions: Vec<Arc<Region>>,
    pub(crate) shared_bytes: u64,
    pub(crate) dynamic_shared: u32,
    pub(crate) launch: u32,
    pub(crate) checks: bool,
    /// Whether the kernel orders some warps of a CTA only.
    pub(crate) orders_some: bool,
    /// Held during atomics and strong accesses of 64 bits, whose halves are words of their own.
    pub(crate) wide_atomics: Mutex<()>,
    /// What releases handed on, by address: CTA and epoch.
    pub(crate) releases: Mutex<HashMap<u64, HashMap<u32, u32>>>,
    pub(crate) has_releases: AtomicBool,
}

impl Grid<'_> {
    fn threads(&self) -> u32 {
        self.block.iter().product()
    }

    pub(crate) fn warps(&self) -> usize {
        self.threads().div_ceil(32) as usize
    }

    pub(crate) fn place(&self, index: usize, cta: [u32; 3], linear: u32) -> Place {
        Place {
            index,
            threads: self.threads(),
            block: self.block,
            grid: self.size,
            cta,
            sm: linear % self.chip.sms(),
            sms: self.chip.sms(),
            launch: self.launch,
            dynamic_shared: self.dynamic_shared,
            total_shared: self.shared_bytes as u32,
        }
    }
}

/// The most bytes of the host for registers and local memory of a CTA.
const MOST_PRIVATE: u64 = 1 << 28;

/// What the host threads share.
struct Pool<'a> {
    next: AtomicU64,
    stop: AtomicBool,
    fault: Mutex<Option<Fault>>,
    writes: Vec<AtomicU64>,
    /// One more than the version at which each thread had nothing to do but wait; 0 while it runs.
    quiet: Vec<AtomicU64>,
    waits: Mutex<HashMap<u32, String>>,
    steps: AtomicU64,
    outside: Outside<'a>,
}

/// What goes on beside the launch.
struct Outside<'a> {
    activity: Option<&'a Activity>,
    /// The launch's number there, its writes of which others were told, and since when it runs again.
    launch: u64,
    told: Mutex<(u64, Instant)>,
    /// How often it looked again, though nobody had said that something changed.
    looks: AtomicU64,
}

impl Outside<'_> {
    /// What may have changed from outside so far.
    fn changes(&self) -> u64 {
        self.activity.map_or(0, |activity| activity.changes() + self.looks.load(SeqCst))
    }

    /// Waits until something may have changed; false where nothing will. `seen` are the changes, `writes` the launch's own.
    fn await_change(&self, seen: u64, writes: u64) -> bool {
        let Some(activity) = self.activity else { return false };
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if self.changes() != seen {
            return true;
        }
        let (seen, has_written) = (seen - self.looks.load(SeqCst), told.0 != writes);
        let will_change = activity.await_change(self.launch, seen, has_written, told.1.elapsed());
        *told = (writes, Instant::now());
        self.looks.fetch_add(1, SeqCst);
        will_change
    }
}

/// Runs a kernel to its end.
pub(crate) fn launch(kernel: &Kernel, device: &Device, launch: &Launch<'_>) -> Result<Counters, Fault> {
    let chip = device.chip;
    // The sizes are checked before anything is computed from them.
    check(kernel, chip, launch)?;
    let (number, regions) = device.memory.begin();
    let total = launch.grid.iter().map(|&n| u64::from(n)).product::<u64>();
    let grid = Grid {
        kernel,
        size: launch.grid,
        block: launch.block,
        chip,
        params: launch.params,
        memory: &device.memory,
        regions,
        shared_bytes: kernel.shared_bytes + u64::from(launch.shared_bytes),
        dynamic_shared: launch.shared_bytes,
        launch: number,
        checks: launch.options.checks,
        orders_some: kernel.orders_some(),
        wide_atomics: Mutex::new(()),
        releases: Mutex::default(),
        has_releases: AtomicBool::new(false),
    };
    let threads = launch.options.threads.clamp(1, total.min(64) as usize);
    let pool = Pool {
        next: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        fault: Mutex::new(None),
        writes: (0..threads).map(|_| AtomicU64::new(0)).collect(),
        quiet: (0..threads).map(|_| AtomicU64::new(0)).collect(),
        waits: Mutex::default(),
        steps: AtomicU64::new(0),
        outside: Outside {
            activity: launch.options.activity.as_deref(),
            launch: launch.options.activity.as_deref().map_or(0, Activity::number),
            told: Mutex::new((0, Instant::now())),
            looks: AtomicU64::new(0),
        },
    };
    let most = chip.resident(launch.block.iter().product(), grid.shared_bytes).div_ceil(threads as u64);
    let work = |me| worker(&grid, &pool, me, total, most as usize, launch.options.step_limit);
    let counters = if threads == 1 {
        work(0)
    } else {
        let work = &work;
        std::thread::scope(|scope| {
            let handles: Vec<_> = (0..threads).map(|me| scope.spawn(move || work(me))).collect();
            let mut sum = Counters::default();
            for handle in handles {
                match handle.join() {
                    Ok(counters) => sum += &counters,
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            sum
        })
    };
    match pool.fault.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(fault) => Err(fault),
        None => Ok(counters),
    }
}

/// Checks the sizes of a launch.
pub(crate) fn check(kernel: &Kernel, chip: Chip, launch: &Launch<'_>) -> Result<(), Fault> {
    let refuse = |message: String| {
        Err(Fault {
            kind: FaultKind::Launch,
            kernel: kernel.name.clone(),
            line: 0,
            cta: [0; 3],
            warp: 0,
            lanes: 0,
            message,
        })
    };
    let ([x, y, z], [a, b, c]) = (launch.block, launch.grid);
    let threads = u64::from(x).saturating_mul(u64::from(y)).saturating_mul(u64::from(z));
    if threads == 0 || threads > 1024 || z > 64 {
        return refuse(format!("a block of {x} x {y} x {z} threads; 1 to 1024 are possible, 64 of them in z"));
    }
    if a == 0 || b == 0 || c == 0 || a > i32::MAX as u32 || b > 65535 || c > 65535 {
        return refuse(format!("a grid of {a} x {b} x {c} CTAs; y and z go to 65535"));
    }
    if u64::from(a).saturating_mul(u64::from(b)).saturating_mul(u64::from(c)) >= 1 << 24 {
        return refuse(format!("a grid of {a} x {b} x {c} CTAs; the emulator runs fewer than 2^24"));
    }
    if let Some(most) = kernel.max_threads.filter(|&most| threads > most) {
        return refuse(format!("{threads} threads, and the kernel is compiled for {most}"));
    }
    if let Some([rx, ry, rz]) = kernel.required_block.filter(|required| *required != launch.block) {
        return refuse(format!("a block of {x} x {y} x {z} threads; the kernel requires {rx} x {ry} x {rz}"));
    }
    let shared = kernel.shared_bytes + u64::from(launch.shared_bytes);
    if shared > chip.shared_limit() {
        return refuse(format!("{shared} bytes of shared memory; {} is the most", chip.shared_limit()));
    }
    let warps = threads.div_ceil(32);
    let registers = (u64::from(kernel.regs32) * 128 + u64::from(kernel.regs64) * 256) * warps;
    let private = registers + 2 * kernel.local_bytes * 32 * warps;
    if private > MOST_PRIVATE {
        return refuse(format!(
            "registers and local memory of one CTA need {private} bytes of the host; {MOST_PRIVATE} is the most: \
             launch fewer threads"
        ));
    }
    if launch.params.len() != kernel.param_bytes as usize {
        return refuse(format!("{} bytes of parameters; {} are declared", launch.params.len(), kernel.param_bytes));
    }
    Ok(())
}

fn worker<'a>(grid: &'a Grid<'a>, pool: &Pool<'_>, me: usize, total: u64, most: usize, limit: u64) -> Counters {
    let mut counters = Counters::default();
    let mut resident: Vec<(Cta<'a>, u64)> = Vec::new();
    let begin = |resident: &mut Vec<(Cta<'a>, u64)>| {
        let linear = pool.next.fetch_add(1, SeqCst);
        let found = linear < total;
        if found {
            resident.push((Cta::new(grid, linear as u32), 0));
        }
        found
    };
    let own = || pool.writes.iter().map(|writes| writes.load(SeqCst)).sum::<u64>();
    let version = || own() + pool.outside.changes();
    let fail = |fault: Fault| {
        pool.fault.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(fault);
        pool.stop.store(true, SeqCst);
    };
    while !pool.stop.load(SeqCst) {
        if resident.is_empty() && !begin(&mut resident) {
            break;
        }
        let (outside, before) = (pool.outside.changes(), version());
        let mut all_quiet = true;
        let mut index = 0;
        while index < resident.len() {
            let (cta, instructions) = &mut resident[index];
            let writes = cta.writes;
            let outcome = cta.round();
            pool.writes[me].fetch_add(cta.writes - writes, SeqCst);
            let now = cta.instructions();
            let steps = pool.steps.fetch_add(now - *instructions, SeqCst);
            *instructions = now;
            match outcome {
                Ok(Round::Done) => {
                    counters += &cta.counters;
                    resident.swap_remove(index);
                    all_quiet = false;
                    // That a CTA is gone may be what others wait for.
                    pool.writes[me].fetch_add(1, SeqCst);
                    continue;
                }
                Ok(round) => all_quiet &= round == Round::Quiet,
                Err(fault) => {
                    fail(fault);
                    return counters;
                }
            }
            if steps > limit {
                fail(Fault {
                    kind: FaultKind::StepLimit,
                    kernel: grid.kernel.name.clone(),
                    line: 0,
                    cta: cta.index,
                    warp: 0,
                    lanes: 0,
                    message: format!("more than {limit} instructions; {}", cta.waits()),
                });
                return counters;
            }
            index += 1;
        }
        if !all_quiet || resident.is_empty() {
            pool.quiet[me].store(0, SeqCst);
            continue;
        }
        if resident.len() < most && begin(&mut resident) {
            continue;
        }
        let mut waits = pool.waits.lock().unwrap_or_else(PoisonError::into_inner);
        waits.extend(resident.iter().map(|(cta, _)| (cta.linear, cta.waits())));
        drop(waits);
        pool.quiet[me].store(before + 1, SeqCst);
        // While nothing changes, another round would change nothing either, and only take steps from those that go on.
        let is_quiet = |quiet: &AtomicU64| [before + 1, u64::MAX].contains(&quiet.load(SeqCst));
        let mut all = false;
        while !all && version() == before && !pool.stop.load(SeqCst) {
            all = pool.quiet.iter().all(is_quiet);
            std::thread::yield_now();
        }
        if all && version() == before {
            if pool.outside.await_change(outside, own()) {
                continue;
            }
            let waits = pool.waits.lock().unwrap_or_else(PoisonError::into_inner);
            let mut list: Vec<_> = resident.iter().map(|(cta, _)| cta.linear).collect();
            list.extend(waits.keys().filter(|cta| !list.contains(cta)).copied().collect::<Vec<_>>());
            list.sort_unstable();
            let told: Vec<String> = list
                .iter()
                .take(8)
                .map(|cta| format!("CTA {cta}: {}", waits.get(cta).cloned().unwrap_or_default()))
                .collect();
            let begun = pool.next.load(SeqCst).min(total);
            let missing = total - begun;
            let absent = if missing > 0 { format!("; {missing} CTAs have no room to begin") } else { String::new() };
            fail(Fault {
                kind: FaultKind::Deadlock,
                kernel: grid.kernel.name.clone(),
                line: 0,
                cta: resident[0].0.index,
                warp: 0,
                lanes: 0,
                message: format!("every CTA waits for a change that none will make: {}{absent}", told.join("; ")),
            });
            return counters;
        }
    }
    // A thread without work is quiet at every version.
    pool.quiet[me].store(u64::MAX, SeqCst);
    for (cta, _) in &resident {
        counters += &cta.counters;
    }
    counters
}
