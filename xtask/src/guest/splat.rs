// SPDX-License-Identifier: MIT OR Apache-2.0
//! Finds reports of errors in a kernel log.

use std::fmt;

/// What a kernel prints when something is wrong with it.
const PATTERNS: &[&str] = &[
    "BUG:",
    "BUG ",
    "WARNING:",
    "INFO: possible",
    "INFO: task",
    "INFO: trying to register non-static key",
    "KASAN:",
    "KCSAN:",
    "KMSAN:",
    "KFENCE:",
    "UBSAN:",
    "Oops",
    "Kernel panic",
    "kernel BUG at",
    "general protection fault",
    "unable to handle",
    "invalid opcode:",
    "divide error:",
    "double fault:",
    "stack segment:",
    "stack guard page was hit",
    "possible circular locking",
    "possible recursive locking",
    "possible deadlock",
    "lock inversion",
    "inconsistent lock state",
    "bad unlock balance",
    "held lock freed",
    "suspicious RCU usage",
    "Illegal context switch",
    "sleeping function called",
    "scheduling while atomic",
    "Voluntary context switch within RCU",
    "ODEBUG:",
    "refcount_t:",
    "list_add corruption",
    "list_del corruption",
    "Slab corruption",
    "Call Trace:",
    "detected stall",
    "self-detected stall",
    "detected expedited stalls",
    "rcu_preempt kthread starved",
    "blocked for more than",
    "soft lockup",
    "hard LOCKUP",
    "new suspected memory leaks",
    "kmemleak: Kernel memory leak detector disabled",
    "ref_tracker:",
    "unregister_netdevice: waiting",
    "rust_kernel: panicked",
    "Hit too many leaked",
];

/// The names of our modules.
pub(super) const OURS: &[&str] = &["accf", "accf_kunit"];

/// Messages that name our module and are no sign of an error: what the kernel prints about any
/// module that was not built with it, and about parameters.
const NOTICES: &[&str] = &[
    "loading out-of-tree module taints kernel",
    "module verification failed: signature and/or required key missing",
    // The kernel's command line, which is ours.
    "kunit.filter_glob=",
    // About a parameter without sense: a test gives some.
    "is none of 0 (accept), 1 (reset), 2 (drop)",
    "max_parked=0: ",
    // The module is pinned: tests bring that about, and look for the message themselves.
    "a request may have been cloned out of reach",
    // The same about clients that are reset as their listener is closed.
    "parked clients of a closed SO_REUSEPORT listener are reset",
    "invalid for parameter",
    "too large for parameter",
];

/// The number of lines that are shown before and after a splat's first line.
const BEFORE: usize = 2;
/// See [`BEFORE`].
const AFTER: usize = 45;

/// A place in a kernel log where something is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Splat {
    /// Its first line, without the time stamp.
    pub(crate) line: String,
    /// The lines around it.
    pub(crate) excerpt: String,
}

impl fmt::Display for Splat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}", self.line, self.excerpt)
    }
}

/// Finds the splats of a kernel log, each report once. KCSAN's are in [`super::race`].
pub(crate) fn scan(log: &str) -> Vec<Splat> {
    let lines: Vec<&str> = log.lines().collect();
    let mut splats = Vec::new();
    let mut shown_until = 0;
    for (number, line) in lines.iter().enumerate() {
        // One report has several lines with a pattern; the excerpt has those after the first.
        if number < shown_until || !is_splat(line) {
            continue;
        }
        let begin = number.saturating_sub(BEFORE);
        let end = (number + AFTER).min(lines.len());
        shown_until = end;
        splats.push(Splat {
            line: message(line).to_owned(),
            excerpt: lines[begin..end].join("\n"),
        });
    }
    splats
}

/// Returns whether the line is a sign of an error.
fn is_splat(line: &str) -> bool {
    let message = message(line);
    // The fault of a program in user space, in the words of a kernel's.
    if message.starts_with("traps: ") {
        return false;
    }
    // On a console there is text without a time stamp, which is not the kernel's.
    let is_kernels = message.len() < line.len();
    PATTERNS.iter().any(|pattern| message.contains(pattern)) || (is_kernels && is_ours(message))
}

/// Returns whether the message is of our module or names it: in normal operation it is silent.
fn is_ours(message: &str) -> bool {
    let names_us = message
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .any(|word| OURS.contains(&word));
    names_us && !is_ktap(message) && !NOTICES.iter().any(|notice| message.contains(notice))
}

/// Returns whether the message is a line of KUnit's results.
fn is_ktap(message: &str) -> bool {
    let message = message.trim_start();
    ["KTAP version", "# ", "ok ", "not ok ", "1.."]
        .iter()
        .any(|begin| message.starts_with(begin))
}

/// Returns a log line without its priority and time stamp.
pub(crate) fn message(line: &str) -> &str {
    let line = line
        .strip_prefix('<')
        .and_then(|rest| rest.split_once('>'))
        .filter(|(digits, _)| digits.bytes().all(|b| b.is_ascii_digit()))
        .map_or(line, |(_, rest)| rest);
    let Some((stamp, rest)) = line.strip_prefix('[').and_then(|rest| rest.split_once(']')) else {
        return line;
    };
    let is_time = stamp
        .bytes()
        .all(|b| b.is_ascii_digit() || b == b'.' || b == b' ');
    if !is_time {
        return line;
    }
    let rest = rest.strip_prefix(' ').unwrap_or(rest);
    // CONFIG_PRINTK_CALLER: `[    1.234567][    T1] message`.
    match rest.strip_prefix('[').and_then(|r| r.split_once(']')) {
        Some((caller, rest))
            if caller.trim_start().starts_with(['T', 'C'])
                && caller.trim_start()[1..].bytes().all(|b| b.is_ascii_digit()) =>
        {
            rest.strip_prefix(' ').unwrap_or(rest)
        }
        _ => rest,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines of real logs that must be found, one report each.
    const BAD: &[&str] = &[
        "[   12.750778] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000000",
        "[    9.1] BUG: kernel NULL pointer dereference, address: 0000000000000008",
        "[    9.1] BUG: unable to handle page fault for address: ffffc90000a3d000",
        "[    9.1] BUG kmalloc-64 (Tainted: G           O      ): Object already free",
        "[    5.0] BUG: KASAN: slab-use-after-free in inet_csk_accept+0x1f/0x40",
        "[    5.0] BUG: KCSAN: data-race in tcp_check_req / tcp_rtx_synack",
        "[    5.0] UBSAN: shift-out-of-bounds in net/ipv4/inet_connection_sock.c:1070:12",
        "[    5.0] Oops: general protection fault, probably for non-canonical address \
         0xdffffc0000000001: 0000 [#1] SMP KASAN NOPTI",
        "[    3.2] WARNING: net/ipv4/tcp_minisocks.c:921 at tcp_check_req+0x1/0x2, \
         CPU#0: swapper/0/0",
        "[    3.2] WARNING: CPU: 1 PID: 77 at kernel/time/timer.c:1",
        "[    3.2] WARNING: possible circular locking dependency detected",
        "[    3.2] WARNING: possible recursive locking detected",
        "[    3.2] WARNING: inconsistent lock state",
        "[    3.2] WARNING: suspicious RCU usage",
        "[    3.2] [ BUG: Invalid wait context ]",
        "[    3.2] INFO: trying to register non-static key.",
        "[    3.2] BUG: sleeping function called from invalid context at \
         include/linux/sched/mm.h:321",
        "[    3.2] BUG: scheduling while atomic: insmod/131/0x00000201",
        "[    3.2] ODEBUG: free active (active state 0) object: 00000000 object type: timer_list \
         hint: reqsk_timer_handler+0x0/0x1",
        "[    3.2] refcount_t: underflow; use-after-free.",
        "[    3.2] list_del corruption. prev->next should be ffff888003, but was dead000000000100",
        "[    3.2] rcu: INFO: rcu_preempt self-detected stall on CPU",
        "[    3.2] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
        "[    3.2] INFO: task rmmod:140 blocked for more than 120 seconds.",
        "[    3.2] watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [python3:99]",
        "[    3.2] kmemleak: 2 new suspected memory leaks (see /sys/kernel/debug/kmemleak)",
        "[    3.2] unregister_netdevice: waiting for lo to become free. Usage count = 2",
        "[    3.2] rust_kernel: panicked at library/core/src/panicking.rs:1:1",
        "[    3.2][   T77] WARNING: CPU: 1 PID: 77 at kernel/time/timer.c:1",
        "<4>[    3.2] Call Trace:",
        // Messages of our module, or about it.
        "[    3.2] accf: parked 3 requests",
        "[    3.2] accf: unknown parameter 'timeout' ignored",
        "[    3.2] Modules linked in: accf(O)",
    ];

    /// Lines of real logs that must not be found.
    const FINE: &[&str] = &[
        "[    0.000000] Kernel command line: panic=-1 oops=panic kunit.filter_glob=accf*",
        "[    0.000000] Linux version 7.3.4+deb13-cloud-amd64",
        "[    0.000000] Debugging: BUGS are not expected",
        "[    8.1] accf: loading out-of-tree module taints kernel.",
        "[    8.1] accf: module verification failed: signature and/or required key missing - \
         tainting kernel",
        "[    8.1] accf_kunit: loading out-of-tree module taints kernel.",
        "[    8.1]     KTAP version 1",
        "[    8.1]     # Subtest: accf",
        "[    8.1]     ok 1 accf",
        "[    8.1] not ok 2 accf_kunit",
        "[    8.1] traps: python3[93] general protection fault ip:7f0 sp:7ff error:0 in \
         libc.so.6[7f0+1000]",
        "[    1.0] kmemleak: Kernel memory leak detector initialized (mem pool available: 15679)",
        "/run/accf/guest-init: line 14: mount: command not found",
        "[    1.0] rcu: Preemptible hierarchical RCU implementation.",
        "[    1.0] rcu: \tRCU debug extended QS entry/exit.",
        "[    1.0] Lock dependency validator: Copyright (c) 2006 Red Hat, Inc., Ingo Molnar",
    ];

    #[test]
    fn every_bad_line_is_found() {
        for line in BAD {
            assert_eq!(scan(line).len(), 1, "not found: {line}");
        }
    }

    #[test]
    fn fine_lines_are_not_found() {
        for line in FINE {
            assert_eq!(scan(line), [], "found: {line}");
        }
    }

    #[test]
    fn a_report_is_found_once_and_shown_whole() {
        let log = "[    1.0] all is well\n\
                   [    2.0] ------------[ cut here ]------------\n\
                   [    2.0] WARNING: CPU: 0 PID: 1 at net/core/sock.c:1\n\
                   [    2.0] Modules linked in: accf(O)\n\
                   [    2.0] Call Trace:\n\
                   [    2.0]  <TASK>\n\
                   [    2.0]  sk_free+0x1/0x2\n";
        let splats = scan(log);
        assert_eq!(splats.len(), 1);
        assert!(splats[0].line.starts_with("WARNING: CPU: 0"));
        assert!(splats[0].excerpt.contains("cut here"));
        assert!(splats[0].excerpt.contains("sk_free"));
    }
}
