//! Which CPUs the workers run on.

#![expect(unsafe_code, reason = "CPU affinity has no interface in std")]

use std::{collections::BTreeSet, fs, mem, thread};

/// The CPUs that the process may use: the first of each physical core, then the others.
pub fn cpus() -> Cpus {
    let allowed = allowed();
    let (mut first, mut others) = (Vec::new(), Vec::new());
    let mut cores = BTreeSet::new();
    for cpu in allowed {
        // The list names all hardware threads of the core; without it every CPU counts as a core.
        let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
        let core = fs::read_to_string(path).unwrap_or_else(|_| cpu.to_string());
        if cores.insert(core) { first.push(cpu) } else { others.push(cpu) }
    }
    let cores = first.len();
    first.append(&mut others);
    Cpus { cores, order: first }
}

/// CPUs of the process.
#[derive(Debug)]
pub struct Cpus {
    cores: usize,
    order: Vec<usize>,
}

impl Cpus {
    /// One worker per physical core, and no more than the process's share of CPU time sustains.
    pub fn default_workers(&self) -> usize {
        let sustained = thread::available_parallelism().map_or(1, usize::from);
        self.cores.clamp(1, sustained)
    }

    /// The CPU of a worker; `None` when there are more workers than CPUs, which the scheduler has to share out.
    pub fn of_worker(&self, worker: usize, workers: usize) -> Option<usize> {
        if workers <= self.order.len() { self.order.get(worker).copied() } else { None }
    }
}

/// Pins the calling thread. It is a matter of speed only, so failure is ignored.
pub fn pin(cpu: usize) {
    if cpu >= libc::CPU_SETSIZE as usize {
        return;
    }
    // SAFETY: a CPU set is plain bits, for which zero is a valid value; the index is within the set.
    let set = unsafe {
        let mut set: libc::cpu_set_t = mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        set
    };
    // SAFETY: the set outlives the call, and 0 means the calling thread.
    unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) };
}

/// The CPUs in the process's affinity mask.
fn allowed() -> Vec<usize> {
    // SAFETY: a CPU set is plain bits, for which zero is a valid value.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: the set outlives the call, and 0 means the calling thread.
    let result = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) };
    if result != 0 {
        return Vec::new();
    }
    // SAFETY: the indices are within the set.
    (0..libc::CPU_SETSIZE as usize).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) }).collect()
}
