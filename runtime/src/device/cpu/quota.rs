//! What a container leaves of the machine: CPU time and memory, by Linux's control groups of both versions.
//!
//! Everything is read through a function from path to text, so that machines which are not at hand can be tested.

/// The text of a file, if it can be read.
pub type Read<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Reads the files of this machine.
pub fn file(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

/// What the process's control groups allow; `None` where they set no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Quota {
    /// CPU time per time: 1.5 is one and a half CPUs.
    pub cpus: Option<f64>,
    /// Bytes that may still be taken.
    pub memory: Option<u64>,
}

/// Version 1 writes "no limit" as the largest number of whole pages; no machine has a fraction of that.
const UNLIMITED: u64 = 1 << 60;

/// The tightest bounds of the process's groups and all groups above them.
pub fn quota(read: Read) -> Quota {
    let groups = read("/proc/self/cgroup").unwrap_or_default();
    let mounts = read("/proc/self/mountinfo").unwrap_or_default();
    let number = |path: String| read(&path)?.trim().parse::<i64>().ok();
    let mut quota = Quota::default();
    let mut lower_cpus = |found: Option<f64>| quota.cpus = least(quota.cpus, found);
    for folder in folders(&groups, &mounts, None) {
        lower_cpus(read(&format!("{folder}/cpu.max")).as_deref().and_then(cpu_max));
    }
    for folder in folders(&groups, &mounts, Some("cpu")) {
        let allowed = number(format!("{folder}/cpu.cfs_quota_us")).filter(|&time| time > 0);
        let period = number(format!("{folder}/cpu.cfs_period_us")).filter(|&time| time > 0);
        lower_cpus(allowed.zip(period).map(|(allowed, period)| allowed as f64 / period as f64));
    }
    let mut lower_memory = |limit: Option<i64>, used: Option<i64>, folder: &str, reclaimable: &str| {
        let Some(limit) = limit.map(|limit| limit as u64).filter(|&limit| limit < UNLIMITED) else { return };
        // Pages of files that nobody uses at the moment give way.
        let stat = read(&format!("{folder}/memory.stat")).unwrap_or_default();
        let idle = field(&stat, reclaimable).unwrap_or(0);
        let used = (used.unwrap_or(0) as u64).saturating_sub(idle);
        let left = limit.saturating_sub(used);
        quota.memory = Some(quota.memory.map_or(left, |before| before.min(left)));
    };
    for folder in folders(&groups, &mounts, None) {
        let (limit, used) = (number(format!("{folder}/memory.max")), number(format!("{folder}/memory.current")));
        lower_memory(limit, used, &folder, "inactive_file");
    }
    for folder in folders(&groups, &mounts, Some("memory")) {
        let limit = number(format!("{folder}/memory.limit_in_bytes"));
        let used = number(format!("{folder}/memory.usage_in_bytes"));
        lower_memory(limit, used, &folder, "total_inactive_file");
    }
    quota
}

/// Bytes that the process may still take: what the machine has left, and its groups allow. `None` when neither is known.
pub fn memory_left(read: Read) -> Option<u64> {
    let machine = read("/proc/meminfo").and_then(|text| field(&text, "MemAvailable:")).map(|kib| kib << 10);
    match (machine, quota(read).memory) {
        (Some(machine), Some(group)) => Some(machine.min(group)),
        (machine, group) => machine.or(group),
    }
}

/// The number after a name at the start of a line.
pub fn field(text: &str, name: &str) -> Option<u64> {
    let of_line = |line: &str| {
        let mut words = line.split_whitespace();
        if words.next() == Some(name) { words.next()?.parse().ok() } else { None }
    };
    text.lines().find_map(of_line)
}

/// CPUs of `200000 100000`: the time allowed in each period. `max` is no bound.
fn cpu_max(text: &str) -> Option<f64> {
    let mut words = text.split_whitespace();
    let (allowed, period): (f64, f64) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    (allowed > 0.0 && period > 0.0).then(|| allowed / period)
}

fn least(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// The folders of the process's group and of all above it, as far as they are mounted: those of a controller of version 1,
/// or without one the group of version 2.
fn folders(groups: &str, mounts: &str, controller: Option<&str>) -> Vec<String> {
    // A line is `4:cpu,cpuacct:/path`, that of version 2 `0::/path`.
    let group = groups.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (number, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let fits = match controller {
            None => number == "0" && controllers.is_empty(),
            Some(name) => controllers.split(',').any(|found| found == name),
        };
        fits.then_some(path)
    });
    // A line is `36 35 98:0 /root /mount options - type source options`; `/root` is the group that the mount shows.
    let mount = mounts.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let (mut left, mut right) = (left.split(' ').skip(3), right.split(' '));
        let (root, mount) = (left.next()?, left.next()?);
        let (kind, options) = (right.next()?, right.nth(1)?);
        let fits = match controller {
            None => kind == "cgroup2",
            Some(name) => kind == "cgroup" && options.split(',').any(|found| found == name),
        };
        fits.then_some((root, mount))
    });
    let (Some(group), Some((root, mount))) = (group, mount) else { return Vec::new() };
    // A path that does not lead into the mount is named as seen from elsewhere; then the mount shows the group itself.
    let inside = group.strip_prefix(root).unwrap_or_default().trim_matches('/');
    let mut folder = if inside.is_empty() { mount.to_owned() } else { format!("{mount}/{inside}") };
    let mut folders = Vec::new();
    while folder.len() >= mount.len() {
        folders.push(folder.clone());
        folder.truncate(folder.rfind('/').unwrap_or(0));
    }
    folders
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine of these files.
    fn machine<'a>(files: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + 'a {
        move |path| files.iter().find(|(name, _)| *name == path).map(|(_, text)| (*text).to_owned())
    }

    fn check(files: &[(&str, &str)], cpus: Option<f64>, memory: Option<u64>) {
        assert_eq!(quota(&machine(files)), Quota { cpus, memory }, "{files:?}");
    }

    const MOUNT_2: (&str, &str) =
        ("/proc/self/mountinfo", "30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup rw,nsdelegate\n");

    #[test]
    fn a_machine_without_groups_bounds_nothing() {
        check(&[], None, None);
        check(&[MOUNT_2], None, None);
        check(&[MOUNT_2, ("/proc/self/cgroup", "0::/\n")], None, None);
        let unlimited = [
            MOUNT_2,
            ("/proc/self/cgroup", "0::/\n"),
            ("/sys/fs/cgroup/cpu.max", "max 100000\n"),
            ("/sys/fs/cgroup/memory.max", "max\n"),
        ];
        check(&unlimited, None, None);
    }

    #[test]
    fn version_2_takes_the_tightest_bound_on_the_way_up() {
        let files = [
            MOUNT_2,
            ("/proc/self/cgroup", "0::/user.slice/job\n"),
            ("/sys/fs/cgroup/user.slice/job/cpu.max", "400000 100000\n"),
            ("/sys/fs/cgroup/user.slice/cpu.max", "150000 100000\n"),
            ("/sys/fs/cgroup/user.slice/job/memory.max", "1000000\n"),
            ("/sys/fs/cgroup/user.slice/job/memory.current", "600000\n"),
            ("/sys/fs/cgroup/user.slice/job/memory.stat", "anon 300000\ninactive_file 200000\nactive_file 5\n"),
            ("/sys/fs/cgroup/user.slice/memory.max", "max\n"),
        ];
        check(&files, Some(1.5), Some(600_000));
    }

    #[test]
    fn version_1_names_each_controller() {
        let mounts = "\
41 32 0:36 /docker/7f /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory
44 32 0:39 /docker/7f /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct
";
        let files = [
            ("/proc/self/mountinfo", mounts),
            ("/proc/self/cgroup", "11:memory:/docker/7f\n4:cpu,cpuacct:/docker/7f\n0::/elsewhere\n"),
            ("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "50000\n"),
            ("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ];
        check(&files, Some(0.5), None);
        let unlimited = [files[0], files[1], ("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n"), files[3]];
        check(&unlimited, None, None);
    }

    #[test]
    fn a_group_outside_the_mount_is_the_mount_itself() {
        let files = [
            ("/proc/self/mountinfo", "30 24 0:26 /pod/x /sys/fs/cgroup rw - cgroup2 cgroup rw\n"),
            ("/proc/self/cgroup", "0::/other\n"),
            ("/sys/fs/cgroup/cpu.max", "250000 100000\n"),
        ];
        check(&files, Some(2.5), None);
    }

    #[test]
    fn memory_that_is_left_is_the_lesser_of_machine_and_group() {
        let meminfo = ("/proc/meminfo", "MemTotal:  2000 kB\nMemAvailable:   1000 kB\n");
        assert_eq!(memory_left(&machine(&[meminfo])), Some(1_024_000));
        let group = [
            meminfo,
            MOUNT_2,
            ("/proc/self/cgroup", "0::/\n"),
            ("/sys/fs/cgroup/memory.max", "500000\n"),
            ("/sys/fs/cgroup/memory.current", "1\n"),
        ];
        assert_eq!(memory_left(&machine(&group)), Some(499_999));
        assert_eq!(memory_left(&machine(&[])), None);
    }
}
