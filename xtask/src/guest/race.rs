// SPDX-License-Identifier: MIT OR Apache-2.0
//! The data races that KCSAN reports.
//!
//! The kernel has many of its own. Only reports that name our modules count: our code made one of
//! the two accesses, or called the function that did. Accesses do not count that were made
//! * by an interrupt that came meanwhile,
//! * by a function of the kernel that ours replaces and has called, as the kernel would have,
//! * by TCP's processing of a segment, whether the network or our timer delivered it.

use std::collections::BTreeMap;
use std::fmt;

use super::splat::{message, OURS};

/// The beginning of a report, right after a line of `=`.
const TITLE: &str = "BUG: KCSAN: ";
/// The beginning of its last lines; a line of `=` follows.
const SIGNED: &str = "Reported by Kernel Concurrency Sanitizer on:";
/// The functions of the kernel that the module's callbacks replace.
const REPLACED: &[&str] = &[
    "tcp_v4_syn_recv_sock",
    "tcp_v6_syn_recv_sock",
    "tcp_v4_conn_request",
    "tcp_v6_conn_request",
    "tcp_v4_send_synack",
    "tcp_v6_send_synack",
    "tcp_v4_reqsk_send_ack",
    "tcp_v6_reqsk_send_ack",
    "ip_setsockopt",
    "ipv6_setsockopt",
    "ip_getsockopt",
    "ipv6_getsockopt",
];
/// The functions that the IP layer hands a segment to, and the module's timer, too. Their races
/// occur on any listener: two processors at the handshakes of a plain one, and no module, make
/// `sk_clone()` and `inet_csk_complete_hashdance()` race as well.
const HANDED_TO: &[&str] = &["tcp_v4_rcv", "tcp_v6_rcv"];

/// Our function with a deliberate data race (`kunit/test_sanitizer.rs`).
const ON_PURPOSE: &str = "race_on_purpose";

/// More lines than any report has, with two stacks of 64 frames. A report without its end is cut
/// there.
const LONGEST: usize = 200;

/// One report.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Race {
    /// Its first line, without the common beginning: `data-race in A / B`.
    pub(crate) title: String,
    /// The whole report.
    pub(crate) text: String,
    /// It names one of our modules, and is not the deliberate one.
    pub(crate) is_ours: bool,
    /// It is the deliberate one.
    pub(crate) is_on_purpose: bool,
}

impl fmt::Display for Race {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}", self.title, self.text)
    }
}

/// Takes the reports out of a kernel log; returns them and the lines that are left, including
/// messages of another processor in the middle of a report.
pub(crate) fn take(log: &str) -> (Vec<Race>, String) {
    let mut races = Vec::new();
    let mut rest = String::new();
    let mut leave = |line: &str| {
        rest.push_str(line);
        rest.push('\n');
    };
    let mut lines = log.lines().peekable();
    while let Some(line) = lines.next() {
        let begins = is_rule(line) && lines.peek().is_some_and(|next| is_title(next));
        if !begins && !is_title(line) {
            leave(line);
            continue;
        }
        let mut report = vec![line];
        let mut is_signed = false;
        while let Some(line) = lines.next_if(|next| {
            // The next title begins another report if the end of this one is missing.
            report.len() < LONGEST && (report.len() == 1 || !is_title(next))
        }) {
            if !belongs(message(line)) {
                leave(line);
                continue;
            }
            report.push(line);
            is_signed |= message(line).starts_with(SIGNED);
            if is_signed && is_rule(line) {
                break;
            }
        }
        races.push(Race::new(&report));
    }
    (races, rest)
}

/// Counts the reports of each title, the most frequent first.
fn by_title(races: &[Race]) -> Vec<(usize, &str)> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for race in races {
        *counts.entry(&race.title).or_default() += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().map(|(title, n)| (n, title)).collect();
    counts.sort_by_key(|&(count, _)| std::cmp::Reverse(count));
    counts
}

/// Describes the reports that do not name us: their number and each title. Empty if there are none.
pub(crate) fn summary(foreign: &[Race]) -> String {
    let foreign = foreign.iter().filter(|race| !race.is_on_purpose);
    let foreign: Vec<Race> = foreign.cloned().collect();
    if foreign.is_empty() {
        return String::new();
    }
    let mut text = format!(
        "KCSAN: {} reports of data races that do not name the module:\n",
        foreign.len()
    );
    for (count, title) in by_title(&foreign) {
        text.push_str(&format!("{count:6} × {title}\n"));
    }
    text
}

/// Returns the number of accesses that KCSAN watched, from its counters
/// (`/sys/kernel/debug/kcsan`).
pub(crate) fn watched(counters: &str) -> Option<u64> {
    let value = counters
        .lines()
        .find_map(|line| line.strip_prefix("setup_watchpoints:"))?;
    value.trim().parse().ok()
}

impl Race {
    /// Returns the report of these lines.
    fn new(lines: &[&str]) -> Self {
        let title = lines
            .iter()
            .find_map(|line| message(line).strip_prefix(TITLE));
        // The lines after that are about the machine, and name the program that ran.
        let stacks = lines
            .iter()
            .map(|line| message(line))
            .take_while(|line| !line.starts_with(SIGNED));
        let title = readable(title.unwrap_or_default());
        let is_ours = is_ours(stacks);
        let is_on_purpose = is_ours && is_on_purpose(&title);
        Self {
            title,
            text: readable(&lines.join("\n")),
            is_ours: is_ours && !is_on_purpose,
            is_on_purpose,
        }
    }
}

/// Demangles the names of Rust functions in a text.
fn readable(text: &str) -> String {
    text.split_inclusive([' ', '+', '\n'])
        .map(|word| {
            let name = word.trim_end_matches([' ', '+', '\n']);
            match rustc_demangle::try_demangle(name) {
                Ok(demangled) => format!("{demangled:#}{}", &word[name.len()..]),
                Err(_) => word.to_owned(),
            }
        })
        .collect()
}

/// Returns whether the line is a report's title.
fn is_title(line: &str) -> bool {
    message(line).starts_with(TITLE)
}

/// Returns whether a report may have the message (`kernel/kcsan/report.c`,
/// `dump_stack_print_info()`).
fn belongs(message: &str) -> bool {
    const BEGINNINGS: &[&str] = &[
        TITLE,
        SIGNED,
        "read",
        "write",
        "assert no ",
        "race at unknown origin, with ",
        "value changed: ",
        "CPU: ",
        "Tainted: ",
        "Hardware name: ",
        "Workqueue: ",
        "Stopper: ",
        // Frames, and other indented lines.
        " ",
    ];
    message.is_empty()
        || is_rule(message)
        || BEGINNINGS.iter().any(|begin| message.starts_with(begin))
}

/// Returns whether a report of these lines is about one of our modules. A stack begins with the
/// access.
fn is_ours<'a>(lines: impl Iterator<Item = &'a str>) -> bool {
    let mut counts = true;
    for line in lines {
        if !line.starts_with(' ') {
            // A title, or the line before a stack.
            counts = true;
        }
        if counts && names_us(line) {
            return true;
        }
        if line.starts_with(' ') && is_border(line) {
            counts = false;
        }
    }
    false
}

/// Returns whether all functions in a demangled title are the one with the deliberate race.
fn is_on_purpose(title: &str) -> bool {
    let functions = title.strip_prefix("data-race in ").unwrap_or_default();
    functions.split(" / ").all(|function| {
        let path = function.split(['+', ' ']).next().unwrap_or_default();
        path.rsplit("::").next() == Some(ON_PURPOSE)
    })
}

/// Returns whether the callers of a frame have nothing to do with the access: they were
/// interrupted, called what the kernel would have called without us, or delivered a segment.
fn is_border(frame: &str) -> bool {
    let name = frame.trim_start().split(['+', '.', ' ']).next();
    name.is_some_and(|name| {
        name.starts_with("asm_sysvec_") || REPLACED.contains(&name) || HANDED_TO.contains(&name)
    })
}

/// Returns whether a line of a report, its title or a frame, has a function of one of our modules:
/// `name+0x1/0x2 [module]`.
fn names_us(line: &str) -> bool {
    line.split(['[', ']'])
        .skip(1)
        .step_by(2)
        // An identifier of the build and flags may follow the name.
        .filter_map(|module| module.split([' ', '(']).next())
        .any(|module| OURS.contains(&module))
}

/// Returns whether the line is the rule of `=` that a report begins and ends with.
fn is_rule(line: &str) -> bool {
    let message = message(line);
    message.len() > 60 && message.bytes().all(|byte| byte == b'=')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::splat;

    const RULE: &str = "==================================================================";

    /// Returns a report of two accesses, with these frames.
    fn report(this: &[&str], other: &[&str]) -> String {
        let stamp = |line: &str| format!("[   33.100000] {line}\n");
        let frames = |frames: &[&str]| -> String {
            let frames = frames.iter();
            frames.map(|frame| stamp(&format!(" {frame}"))).collect()
        };
        let name = |frames: &[&str]| frames[0].split('+').next().unwrap().to_owned();
        let (here, there) = (name(this), name(other));
        [
            stamp(RULE),
            stamp(&format!("BUG: KCSAN: data-race in {here} / {there}")),
            stamp(""),
            stamp("write to 0xffff888003a5b0d8 of 8 bytes by interrupt on cpu 1:"),
            frames(this),
            stamp(""),
            stamp("read to 0xffff888003a5b0d8 of 8 bytes by task 131 on cpu 0:"),
            frames(other),
            stamp(""),
            stamp("value changed: 0x0000000000000000 -> 0xffff888003a5b000"),
            stamp(""),
            stamp("Reported by Kernel Concurrency Sanitizer on:"),
            stamp(
                "CPU: 0 UID: 0 PID: 131 Comm: accf-suite Tainted: G           O        7.3.4 #1 \
                 PREEMPT(lazy) ",
            ),
            stamp("Tainted: [O]=OOT_MODULE"),
            stamp("Hardware name: QEMU Standard PC (i440FX + PIIX, 1996), BIOS 1.16.3 04/01/2014"),
            stamp(RULE),
        ]
        .concat()
    }

    #[test]
    fn a_report_without_our_modules_is_foreign() {
        // The program's name is no sign.
        let log = report(
            &["tcp_rearm_rto+0x1b/0x40", "tcp_ack+0x10/0x20"],
            &["tcp_poll+0x44/0x300", "ep_item_poll+0x5/0x9"],
        );
        let (races, rest) = take(&log);
        assert_eq!(races.len(), 1);
        assert_eq!(races[0].title, "data-race in tcp_rearm_rto / tcp_poll");
        assert!(!races[0].is_ours);
        assert_eq!(races[0].text, log.trim_end());
        assert_eq!(rest, "");
    }

    #[test]
    fn a_frame_of_ours_in_either_stack_counts() {
        let ours = "_RNvNtNtCs1_9accf_main3net5hooks10destructor+0x4/0x90 [accf]";
        for (this, other) in [
            (ours, "tcp_poll+0x44/0x300"),
            ("tcp_poll+0x44/0x300", ours),
            ("tcp_poll+0x44/0x300", "fabricate+0x44/0x300 [accf_kunit]"),
            (
                "tcp_poll+0x44/0x300",
                "accf_qlen+0x4/0x9 [accf 0123abcd (O)]",
            ),
        ] {
            let log = report(&["tcp_ack+0x1/0x2", this], &["tcp_poll+0x1/0x2", other]);
            assert!(take(&log).0[0].is_ours, "{log}");
        }
        let other_module = report(&["f+0x1/0x2 [accfoo]"], &["g+0x1/0x2 [nf_accf]"]);
        assert!(!take(&other_module).0[0].is_ours);
    }

    #[test]
    fn interrupted_and_replacing_functions_do_not_count() {
        let ours = "_RNvNtNtCs1_9accf_main3net5hooks10on_request+0x4/0x90 [accf]";
        let race = |frames: &[&str]| {
            let log = report(frames, &["tcp_poll+0x44/0x300"]);
            let mut races = take(&log).0;
            races.pop().unwrap().is_ours
        };
        let interrupt = "asm_sysvec_apic_timer_interrupt+0x1b/0x20";
        assert!(!race(&["run_timer_softirq+0x1/0x2", interrupt, ours]));
        assert!(race(&["accf_uncharge+0x1/0x2 [accf]", interrupt, ours]));
        let original = "tcp_v4_syn_recv_sock+0xa2/0x760";
        assert!(!race(&["sk_clone+0x1/0x2", original, ours]));
        assert!(race(&["sk_clone+0x1/0x2", ours, original]));
        // Each stack has its own.
        let log = report(&["f+0x1/0x2", interrupt], &["g+0x1/0x2", ours]);
        assert!(take(&log).0[0].is_ours);
    }

    #[test]
    fn what_delivers_a_segment_does_not_count() {
        let on_request = "_RNvNtNtCs1_9accf_main3net5hooks10on_request+0xfa/0x850 [accf]";
        // As it was reported; the frames below are left out.
        let by_the_timer = [
            "inet_csk_complete_hashdance+0x81/0x5c0",
            "tcp_check_req+0xb29/0xcc0",
            "tcp_v4_rcv+0xab7/0x12c0",
            "accf_tcp_rcv+0x70/0x80 [accf]",
            "_RNvMNtNtCs1_9accf_main3net8listenerNtB2_8Listener6expire+0x1c6/0x530 [accf]",
            "__hrtimer_run_queues+0x23b/0x390",
        ];
        let by_the_network = [
            "sk_clone+0x9b/0x7d0",
            "inet_csk_clone_lock+0x2d/0x280",
            "tcp_create_openreq_child+0x33/0x1030",
            "tcp_v4_syn_recv_sock+0xa2/0x760",
            on_request,
            "tcp_check_req+0x9e5/0xcc0",
            "tcp_v4_rcv+0xab7/0x12c0",
        ];
        let race = |this: &[&str], other: &[&str]| take(&report(this, other)).0.pop().unwrap();
        let seen = race(&by_the_timer, &by_the_network);
        assert!(!seen.is_ours, "{seen}");
        // Our functions that TCP calls then count.
        let ours = [&[on_request], &by_the_timer[1..]].concat();
        assert!(race(&ours, &by_the_network).is_ours);
        // So do accesses of the timer itself.
        assert!(race(&by_the_timer[3..], &by_the_network).is_ours);
    }

    #[test]
    fn the_deliberate_race_is_told_from_others() {
        let planted =
            "_RNvNtCs1_15accf_kunit_main14test_sanitizer15race_on_purpose+0x4/0x90 [accf_kunit]";
        let race = |this: &str, other: &str| take(&report(&[this], &[other])).0.pop().unwrap();
        let seen = race(planted, planted);
        assert!(seen.is_on_purpose && !seen.is_ours, "{seen}");
        assert_eq!(summary(&[seen]), "");
        // With any other function it is a finding.
        for (this, other) in [
            (planted, "tcp_poll+0x1/0x2"),
            ("f+0x1/0x2 [accf]", planted),
            ("f+0x1/0x2 [accf]", "f+0x1/0x2 [accf]"),
        ] {
            let seen = race(this, other);
            assert!(!seen.is_on_purpose && seen.is_ours, "{seen}");
        }
        let theirs = race("race_on_purpose+0x1/0x2", "race_on_purpose+0x1/0x2");
        assert!(!theirs.is_on_purpose && !theirs.is_ours);
    }

    #[test]
    fn a_reordered_access_counts() {
        let log = report(&["tcp_ack+0x1/0x2"], &["tcp_poll+0x1/0x2"]).replace(
            "value changed",
            "  |\n[   33.1]   +-> reordered to: accf_qlen_add+0x9/0x20 [accf]\n\
             [   33.1] value changed",
        );
        assert!(take(&log).0[0].is_ours);
    }

    #[test]
    fn a_race_of_unknown_origin_is_read() {
        let log = format!(
            "[    1.0] {RULE}\n\
             [    1.0] BUG: KCSAN: data-race in accf_young+0x10/0x20 [accf]\n\
             [    1.0] \n\
             [    1.0] race at unknown origin, with read to 0xffff888003a5b0d8 of 4 bytes by \
             task 7 on cpu 1:\n\
             [    1.0]  accf_young+0x10/0x20 [accf]\n\
             [    1.0] \n\
             [    1.0] Reported by Kernel Concurrency Sanitizer on:\n\
             [    1.0] CPU: 1 UID: 0 PID: 7 Comm: ss\n\
             [    1.0] {RULE}\n\
             [    1.1] fine\n"
        );
        let (races, rest) = take(&log);
        assert_eq!(races.len(), 1);
        assert!(races[0].is_ours);
        assert_eq!(rest, "[    1.1] fine\n");
    }

    #[test]
    fn reports_that_follow_each_other_are_told_apart() {
        let one = report(&["tcp_ack+0x1/0x2"], &["tcp_poll+0x1/0x2"]);
        let two = report(&["f+0x1/0x2 [accf]"], &["g+0x1/0x2"]);
        let log = format!("[    1.0] before\n{one}{one}{two}[   40.0] after\n");
        let (races, rest) = take(&log);
        let ours: Vec<bool> = races.iter().map(|race| race.is_ours).collect();
        assert_eq!(ours, [false, false, true]);
        assert_eq!(rest, "[    1.0] before\n[   40.0] after\n");
        let twice = "data-race in tcp_ack / tcp_poll";
        assert_eq!(by_title(&races), [(2, twice), (1, "data-race in f / g")]);
        let summary = summary(&races);
        assert!(summary.contains("3 reports"), "{summary}");
        assert!(summary.contains(&format!("2 × {twice}")), "{summary}");
        assert_eq!(super::summary(&[]), "");
    }

    #[test]
    fn a_report_without_an_end_does_not_include_the_next() {
        let one = report(&["tcp_ack+0x1/0x2"], &["tcp_poll+0x1/0x2"]);
        let (cut, _) = one.split_once("Reported by").unwrap();
        let cut = cut.rsplit_once('\n').unwrap().0;
        let two = report(&["f+0x1/0x2 [accf]"], &["g+0x1/0x2"]);
        let (races, rest) = take(&format!("{cut}\n{two}"));
        let ours: Vec<bool> = races.iter().map(|race| race.is_ours).collect();
        assert_eq!(ours, [false, true]);
        assert_eq!(rest, "");
        assert_eq!(take(cut).0.len(), 1);
    }

    #[test]
    fn names_of_rust_functions_are_demangled() {
        let ours = "_RNvNtNtCs1_9accf_main3net5hooks10destructor+0x4/0x90 [accf]";
        let (races, _) = take(&report(&[ours], &["tcp_poll+0x1/0x2"]));
        let name = "accf_main::net::hooks::destructor";
        assert_eq!(races[0].title, format!("data-race in {name} / tcp_poll"));
        let frame = format!(" {name}+0x4/0x90 [accf]\n");
        assert!(races[0].text.contains(&frame), "{}", races[0].text);
    }

    #[test]
    fn kcsans_counters_are_read() {
        let text = "enabled: 1\nused_watchpoints: 0\nsetup_watchpoints: 1234\ndata_races: 5\n";
        assert_eq!(watched(text), Some(1234));
        assert_eq!(watched("enabled: 1\n"), None);
    }

    #[test]
    fn a_message_in_the_middle_of_a_report_is_not_lost() {
        let log = report(&["tcp_ack+0x1/0x2"], &["tcp_poll+0x1/0x2"]);
        let said = "[   33.1] WARNING: net/core/sock.c:1 at sk_free+0x1/0x2, CPU#0: swapper/0/0";
        let with = format!("{said}\n[   33.1] value");
        let log = log.replacen("[   33.100000] value", &with, 1);
        let (races, rest) = take(&log);
        assert_eq!(races.len(), 1);
        assert_eq!(rest.trim_end(), said);
        assert_eq!(splat::scan(&rest).len(), 1);
    }
}
