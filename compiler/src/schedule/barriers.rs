//! Barriers: a launch waits for all earlier ones only where it depends on one that may still be running, because it reads
//! what that one writes, writes what it reads, or writes what it writes.
//!
//! Dependencies are between intermediates and caches, not between places in the arena: [`super::arena`] gives two
//! intermediates one place only when a barrier separates their lives, so places never add a dependency.

use lathe_kernels::spec::Access;

use super::{Buffer, Launch};

/// Sets the barriers and returns each launch's phase: how many barriers come before it.
pub fn place(launches: &mut [Launch]) -> Vec<usize> {
    let mut phases = Vec::with_capacity(launches.len());
    let mut phase_start = 0;
    let mut phase = 0;
    for at in 0..launches.len() {
        let (running, rest) = launches.split_at_mut(at);
        let launch = &mut rest[0];
        launch.barrier = running[phase_start..].iter().any(|earlier| depends(launch, earlier));
        if launch.barrier {
            phase_start = at;
            phase += 1;
        }
        phases.push(phase);
    }
    phases
}

/// Whether `launch` must wait for `earlier`.
pub fn depends(launch: &Launch, earlier: &Launch) -> bool {
    launch.accesses().any(|(buffer, access)| {
        matches!(buffer, Buffer::Arena(_) | Buffer::Cache(_))
            && earlier
                .accesses()
                .any(|(other, before)| other == buffer && (access != Access::Read || before != Access::Read))
    })
}
