// SPDX-License-Identifier: GPL-2.0-only

//! The share of a listener's SYN backlog that parked requests take up: none, except for a few.

/// Returns how many parked requests, at most, stay counted in a SYN backlog of `backlog`.
///
/// When the kernel drops a parked request, it subtracts it from the count of the backlog, although
/// the request is excluded from that count; the module corrects this a moment later. If no other
/// request were half open, the count would be negative in between. The kernel compares it without
/// a sign: the backlog would look full, and a client whose SYN arrives at that moment would get a
/// syncookie. So a few parked requests stay counted: one for each of `cpus`, as a CPU drops one
/// request after another, but at most an eighth of the backlog. The count can still become negative
/// with a backlog of less than eight, and on PREEMPT_RT, where other tasks may preempt a task that
/// drops a request.
pub fn backlog_share(backlog: u32, cpus: u32) -> u32 {
    cpus.min(backlog / 8)
}

/// Returns how many of `parked` requests are excluded from the count of the SYN backlog, where at
/// most `backlog_share` of them stay counted.
pub fn backlog_excluded(parked: u64, backlog_share: u32) -> u64 {
    parked.saturating_sub(u64::from(backlog_share))
}
