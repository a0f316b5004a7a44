// SPDX-License-Identifier: GPL-2.0-only

//! The place of parked requests in a listener's SYN backlog: none, but for a few.

/// How many parked requests keep their place in a SYN backlog of `backlog`, at most.
///
/// When the kernel drops a parked request, it counts it off, though it is not counted; we hear of it a moment later. With
/// nobody half open the count would be below zero in between, and the kernel compares it without a sign: the backlog
/// would look full, and a client whose SYN comes at that moment would get a syncookie. So a few parked requests keep
/// their place: one for each of `cpus`, as a CPU drops one after another, but at most an eighth of the backlog. With a
/// backlog of less than eight it may happen, and on PREEMPT_RT, where a task that drops one may be preempted by others.
pub fn backlog_share(backlog: u32, cpus: u32) -> u32 {
    cpus.min(backlog / 8)
}

/// How many of `parked` requests are taken off the count of those that fill the SYN backlog, where `places` keep theirs.
pub fn backlog_excluded(parked: u64, backlog_share: u32) -> u64 {
    parked.saturating_sub(u64::from(backlog_share))
}
