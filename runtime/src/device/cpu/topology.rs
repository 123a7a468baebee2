//! Which CPUs the workers run on.

#![expect(unsafe_code, reason = "CPU affinity has no interface in std")]

use std::{collections::BTreeSet, mem, ptr};

use super::quota::{self, Read};
use crate::error::{Error, Result};

/// Workers that a CPU may be asked to share before the number is taken for a mistake.
const MOST_PER_CPU: usize = 4;

/// The CPUs that the process may use: the first of each physical core, then the others.
#[derive(Clone, Debug, PartialEq)]
pub struct Cpus {
    /// Physical cores.
    pub cores: usize,
    /// All CPUs, which are hardware threads.
    pub order: Vec<usize>,
    /// CPU time that a container's quota leaves the process, in CPUs.
    pub quota: Option<f64>,
}

/// How many workers run, and what to tell the user of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Workers {
    /// How many.
    pub count: usize,
    /// Why they will be slower than could be, and what to do.
    pub warning: Option<String>,
}

impl Cpus {
    /// Those of this process.
    pub fn here() -> Cpus {
        Cpus::of(&allowed(), &quota::file)
    }

    /// The CPUs of these numbers on a machine of these files.
    fn of(allowed: &[usize], read: Read) -> Cpus {
        let (mut first, mut others) = (Vec::new(), Vec::new());
        let mut cores = BTreeSet::new();
        for &cpu in allowed {
            // The list names all hardware threads of the core; without it every CPU counts as a core.
            let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
            let core = read(&path).unwrap_or_else(|| cpu.to_string());
            if cores.insert(core) { first.push(cpu) } else { others.push(cpu) }
        }
        let cores = first.len();
        first.append(&mut others);
        Cpus { cores, order: first, quota: quota::quota(read).cpus }
    }

    /// One worker per physical core, and no more than the process's share of CPU time sustains; or as many as are asked for.
    ///
    /// # Errors
    /// When none is asked for, or so many that it must be a mistake.
    pub fn workers(&self, asked: Option<usize>) -> Result<Workers> {
        let cpus = self.order.len().max(1);
        let cores = self.cores.max(1);
        let sustained = self.quota.map_or(usize::MAX, |quota| (quota.floor() as usize).max(1));
        let most = cpus * MOST_PER_CPU;
        let quota = self.quota.unwrap_or(f64::INFINITY);
        let Some(count) = asked else {
            let count = cores.min(sustained);
            let warning = (count < cores).then(|| {
                format!(
                    "the container's quota is {quota:.2} CPUs of the {cores} cores here, so {count} of them work; raise \
                     the quota, or set --threads"
                )
            });
            return Ok(Workers { count, warning });
        };
        if count == 0 || count > most {
            return Err(Error::Threads { asked: count, most, cpus });
        }
        let warning = if count > sustained {
            Some(format!(
                "{count} threads share a quota of {quota:.2} CPUs, so the system will stop them again and again while they \
                 wait for each other; lower --threads to {}, or raise the container's quota",
                sustained.min(cores)
            ))
        } else if count > cpus {
            Some(format!("{count} threads share {cpus} CPUs and will wait for each other; lower --threads to {cores}"))
        } else if count > cores {
            Some(format!(
                "{count} threads run on {cores} cores: two that share a core by hyperthreading have one core's arithmetic; \
                 --threads {cores} is usually faster"
            ))
        } else {
            None
        };
        Ok(Workers { count, warning })
    }

    /// The CPU of a worker; `None` when there are more workers than CPUs, which the scheduler has to share out.
    pub fn of_worker(&self, worker: usize, workers: usize) -> Option<usize> {
        if workers <= self.order.len() { self.order.get(worker).copied() } else { None }
    }
}

/// The CPU's name, where the system tells it.
pub fn name(read: Read) -> String {
    let text = read("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split_once(':'));
    name.map(|(_, name)| name.trim().to_owned()).unwrap_or_default()
}

/// Pins the calling thread. It is a matter of speed only, so failure is ignored.
pub fn pin(cpu: usize) {
    if cpu < libc::CPU_SETSIZE as usize {
        let mut set = no_cpus();
        // SAFETY: the index is within the set.
        unsafe { libc::CPU_SET(cpu, &mut set) };
        set_affinity(&set);
    }
}

/// Brings the calling thread to a CPU, from which the scheduler may take it again. A matter of speed only, as pinning is.
pub fn move_to(cpu: usize) {
    // SAFETY: it has no requirements.
    let here = unsafe { libc::sched_getcpu() };
    if usize::try_from(here).is_ok_and(|here| here == cpu) {
        return;
    }
    if let Some(before) = affinity() {
        pin(cpu);
        set_affinity(&before);
    }
}

fn no_cpus() -> libc::cpu_set_t {
    // SAFETY: a CPU set is plain bits, for which zero is a valid value.
    unsafe { mem::zeroed() }
}

/// The CPUs that the calling thread may use.
fn affinity() -> Option<libc::cpu_set_t> {
    let mut set = no_cpus();
    // SAFETY: the set outlives the call, and 0 means the calling thread.
    let result = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) };
    (result == 0).then_some(set)
}

fn set_affinity(set: &libc::cpu_set_t) {
    // SAFETY: the set outlives the call, and 0 means the calling thread.
    unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), ptr::from_ref(set)) };
}

/// The CPUs in the process's affinity mask.
fn allowed() -> Vec<usize> {
    let Some(set) = affinity() else { return Vec::new() };
    // SAFETY: the indices are within the set.
    (0..libc::CPU_SETSIZE as usize).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four cores of two hardware threads each: 0 and 4 are one, and so on.
    fn hyperthreads(path: &str) -> Option<String> {
        let cpu: usize = path.strip_prefix("/sys/devices/system/cpu/cpu")?.split_once('/')?.0.parse().ok()?;
        Some(format!("{},{}\n", cpu % 4, cpu % 4 + 4))
    }

    #[test]
    fn hardware_threads_of_one_core_come_last() {
        let cpus = Cpus::of(&[0, 1, 2, 3, 4, 5, 6, 7], &hyperthreads);
        assert_eq!((cpus.cores, &cpus.order[..]), (4, &[0, 1, 2, 3, 4, 5, 6, 7][..]));
        let cpus = Cpus::of(&[0, 1, 4, 5], &hyperthreads);
        assert_eq!((cpus.cores, &cpus.order[..]), (2, &[0, 1, 4, 5][..]));
        let cpus = Cpus::of(&[1, 5, 6], &hyperthreads);
        assert_eq!((cpus.cores, &cpus.order[..]), (2, &[1, 6, 5][..]));
        assert_eq!(Cpus::of(&[3, 7, 9], &|_| None).cores, 3);
    }

    #[test]
    fn each_core_has_one_worker_unless_a_quota_is_lower() {
        let workers = |quota, asked| {
            let cpus = Cpus { quota, ..Cpus::of(&[0, 1, 2, 3, 4, 5, 6, 7], &hyperthreads) };
            cpus.workers(asked).expect("a sensible number")
        };
        let check = |quota, asked, count, hint: Option<&str>| {
            let found = workers(quota, asked);
            assert_eq!(found.count, count, "{quota:?} {asked:?}");
            match hint {
                None => assert_eq!(found.warning, None, "{quota:?} {asked:?}"),
                Some(hint) => assert!(found.warning.as_deref().unwrap_or_default().contains(hint), "{found:?}"),
            }
        };
        check(None, None, 4, None);
        check(Some(16.0), None, 4, None);
        check(Some(2.5), None, 2, Some("2.50 CPUs of the 4 cores here, so 2"));
        check(Some(0.5), None, 1, Some("0.50 CPUs"));
        check(None, Some(3), 3, None);
        check(None, Some(8), 8, Some("hyperthreading"));
        check(None, Some(9), 9, Some("share 8 CPUs"));
        check(Some(2.5), Some(3), 3, Some("--threads to 2"));
        check(Some(2.5), Some(2), 2, None);
    }

    #[test]
    fn absurd_numbers_are_refused() {
        let cpus = Cpus::of(&[0, 1], &|_| None);
        for asked in [0, 9, usize::MAX] {
            let error = cpus.workers(Some(asked)).unwrap_err().to_string();
            assert!(error.contains(&asked.to_string()) && error.contains("from 1 to 8"), "{error}");
        }
        assert!(cpus.workers(Some(8)).is_ok());
    }

    #[test]
    fn workers_have_cpus_of_their_own_or_none() {
        let cpus = Cpus::of(&[1, 5, 6], &hyperthreads);
        assert_eq!((0..3).map(|worker| cpus.of_worker(worker, 3)).collect::<Vec<_>>(), [Some(1), Some(6), Some(5)]);
        assert_eq!(cpus.of_worker(0, 4), None);
    }
}
