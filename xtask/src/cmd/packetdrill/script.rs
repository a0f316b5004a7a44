// SPDX-License-Identifier: MIT OR Apache-2.0
//! Rewrites packetdrill scripts: sets the filter on each listener, and moves `accept()`.
//!
//! A script is a sequence of events. Each begins on a line of its own with a time, mostly relative
//! to the event before it: `+.1 < . 1:1(0) ack 1 win 257`. Only what is rewritten is understood;
//! all else is kept byte by byte.

use std::fmt::Write as _;

/// A form of a script with the filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Variant {
    /// The filter on each listener. `accept()` returns at once.
    Filtered,
    /// The same, and `accept()` is called after the client's first data.
    AfterData,
    /// The filter with a deadline; `accept()` is called later, and waits.
    Deadline,
}

impl Variant {
    /// All of them.
    pub(super) const ALL: [Self; 3] = [Self::Filtered, Self::AfterData, Self::Deadline];

    /// Returns the name of its directory, as the suite's program has it.
    pub(super) fn directory(self) -> &'static str {
        match self {
            Self::Filtered => "dataready",
            Self::AfterData => "after-data",
            Self::Deadline => "deadline",
        }
    }
}

/// `TCP_ULP` of `linux/tcp.h`, which packetdrill does not know by name.
const TCP_ULP: u32 = 31;

/// `SOL_ACCF` and `ACCF_CONFIG` of `accf.h`.
const ACCF_CONFIG: &str = "0xACCF, 1";

/// The deadline of [`Variant::Deadline`], in milliseconds.
const DEADLINE_MS: u32 = 5;

/// How much later [`Variant::Deadline`] accepts, in microseconds.
///
/// The deadline with some room, so that the script's times still hold. Otherwise a blocking
/// `accept()` would be late by the deadline, and one that does not block would find nothing.
pub(super) const LATER_USECS: u64 = 10_000;

/// When an event takes place.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Time {
    /// Microseconds after the event before it: the earliest and, if a segment may come at any time
    /// in a range, the latest.
    After(u64, Option<u64>),
    /// Another form, as it is written.
    Other(String),
}

impl Time {
    /// Reads the time at the beginning of an event.
    fn parse(text: &str) -> Self {
        let other = || Self::Other(text.to_owned());
        let Some(rest) = text.strip_prefix('+') else {
            return other();
        };
        let (first, last) = match rest.split_once("~+") {
            Some((first, last)) => (first, Some(last)),
            None => (rest, None),
        };
        match (usecs(first), last.map(usecs)) {
            (Some(first), None) => Self::After(first, None),
            (Some(first), Some(Some(last))) => Self::After(first, Some(last)),
            _ => other(),
        }
    }

    /// Returns the time that is later by this.
    fn later(&self, usecs: u64) -> Self {
        match self {
            Self::After(first, last) => Self::After(first + usecs, last.map(|last| last + usecs)),
            Self::Other(_) => self.clone(),
        }
    }

    /// Writes it.
    fn text(&self) -> String {
        match self {
            Self::After(first, None) => format!("+{}", seconds(*first)),
            Self::After(first, Some(last)) => format!("+{}~+{}", seconds(*first), seconds(*last)),
            Self::Other(text) => text.clone(),
        }
    }
}

/// Reads seconds, such as `.002`, as microseconds.
fn usecs(text: &str) -> Option<u64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let number = |digits: &str| match digits {
        "" => Some(0),
        digits => digits.parse::<u64>().ok(),
    };
    if (whole.is_empty() && part.is_empty()) || part.len() > 6 {
        return None;
    }
    Some(number(whole)? * 1_000_000 + number(&format!("{part:0<6}"))?)
}

/// Writes microseconds as seconds.
fn seconds(usecs: u64) -> String {
    format!("{}.{:06}", usecs / 1_000_000, usecs % 1_000_000)
}

/// A system call that returns a number.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Call {
    name: String,
    /// The first argument, if it is a number: a file descriptor.
    descriptor: Option<i64>,
    /// The result, if it is a number.
    result: Option<i64>,
    /// Whether the script says when the call returns: it blocks beside the events that follow.
    blocks: bool,
}

/// What an event does.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Action {
    /// The client begins to connect.
    Syn,
    /// The client sends data, or the end of it.
    Data,
    /// Another segment, in either direction.
    Segment,
    /// A system call.
    Call(Call),
    /// A command, or code with assertions on the connection.
    Code,
}

impl Action {
    /// Reads what follows the time.
    fn parse(text: &str) -> Self {
        let (blocks, text) = match text.strip_prefix("...") {
            // The time of its return, and the call.
            Some(rest) => (true, after_word(rest)),
            None => (false, text),
        };
        match text.chars().next() {
            Some('<') => inbound(&text[1..]),
            Some('>') => Self::Segment,
            Some('`' | '%') | None => Self::Code,
            Some(_) => Self::Call(call(text, blocks)),
        }
    }
}

/// Returns what follows the first word of `text`.
fn after_word(text: &str) -> &str {
    let word = text.find(char::is_whitespace).unwrap_or(text.len());
    text[word..].trim_start()
}

/// Reads a segment of the client: its flags, and how many bytes it has, as `1:11(10)`.
fn inbound(text: &str) -> Action {
    let words: Vec<&str> = text.split_whitespace().collect();
    let is_sequence = |word: &&&str| word.contains(':') && word.ends_with(')');
    let Some(sequence) = words.iter().find(is_sequence) else {
        return Action::Segment;
    };
    let is_flags = |word: &&str| {
        !word.is_empty()
            && word
                .chars()
                .all(|c| "FSRP.UEWCA".contains(c) || c.is_ascii_digit())
    };
    let Some(flags) = words.iter().copied().find(|word| is_flags(word)) else {
        // ICMP, which quotes a segment.
        return Action::Segment;
    };
    if flags.contains('S') {
        return Action::Syn;
    }
    let is_empty = sequence.ends_with("(0)");
    if flags.contains('R') || (is_empty && !flags.contains('F')) {
        return Action::Segment;
    }
    Action::Data
}

/// Reads a system call.
fn call(text: &str, blocks: bool) -> Call {
    let (name, rest) = text.split_once('(').unwrap_or((text, ""));
    let first = rest.split([',', ')']).next().unwrap_or_default();
    let result = rest.rsplit_once(") = ").map(|(_, result)| result);
    let result = result.and_then(|result| result.split_whitespace().next());
    Call {
        name: name.trim().to_owned(),
        descriptor: first.trim().parse().ok(),
        result: result.and_then(|result| result.parse().ok()),
        blocks,
    }
}

/// A part of a script.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    /// Comments, options, the first and last command.
    Other(String),
    /// An event.
    Event(Event),
}

/// An event: whitespace, a time, and what takes place, with the end of the line.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Event {
    time: Time,
    /// The time as it was written, to be kept unless the time changes.
    written: Option<String>,
    /// All that follows the time.
    rest: String,
    action: Action,
}

impl Event {
    /// Reads an event from its lines.
    fn parse(text: &str) -> Self {
        let begin = text.len() - text.trim_start().len();
        let end = text[begin..]
            .find(char::is_whitespace)
            .map_or(text.len(), |length| begin + length);
        // `+0...0.2 accept(…)`: the end of a call that blocks is not part of the time.
        let end = text[begin..end]
            .find("...")
            .map_or(end, |length| begin + length);
        let rest = &text[end..];
        Self {
            time: Time::parse(&text[begin..end]),
            written: Some(text[..end].to_owned()),
            rest: rest.to_owned(),
            action: Action::parse(without_comments(rest).trim_start()),
        }
    }

    /// Changes the time.
    fn at(&mut self, time: Time) {
        if self.time != time {
            self.time = time;
            self.written = None;
        }
    }

    /// Writes the event.
    fn text(&self) -> String {
        let time = self.written.clone();
        format!("{}{}", time.unwrap_or_else(|| self.time.text()), self.rest)
    }

    /// Returns the system call.
    fn call(&self) -> Option<&Call> {
        match &self.action {
            Action::Call(call) => Some(call),
            _ => None,
        }
    }

    /// Returns the listener of a `listen()` that succeeds.
    fn listens(&self) -> Option<i64> {
        let call = self.call()?;
        let succeeds = call.name == "listen" && call.result == Some(0);
        call.descriptor.filter(|_| succeeds)
    }

    /// Returns the descriptor that an `accept()` returns.
    fn accepts(&self) -> Option<i64> {
        let call = self.call()?;
        let is_accept = matches!(call.name.as_str(), "accept" | "accept4");
        call.result.filter(|result| is_accept && *result >= 0)
    }

    /// Returns whether the event only prepares the socket `descriptor`, so that it may follow
    /// `accept()` to a later place.
    fn prepares(&self, descriptor: i64) -> bool {
        self.call().is_some_and(|call| {
            call.descriptor == Some(descriptor)
                && matches!(call.name.as_str(), "setsockopt" | "fcntl")
        })
    }
}

/// Where a reader of the text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Inside {
    /// Between tokens, in this many brackets.
    Brackets(usize),
    /// In a comment of C.
    Comment,
    /// In a string in this many brackets.
    String(usize),
    /// In a command.
    Command,
    /// In code.
    Code,
}

/// Reads on from `inside` to the end of `text`. Hands each character outside of comments to `see`.
fn scan(text: &str, mut inside: Inside, mut see: impl FnMut(char)) -> Inside {
    let mut at = 0;
    while let Some(c) = text[at..].chars().next() {
        let rest = &text[at..];
        let mut length = c.len_utf8();
        let mut seen = true;
        inside = match inside {
            Inside::Comment if rest.starts_with("*/") => {
                (length, seen) = (2, false);
                Inside::Brackets(0)
            }
            Inside::Comment => {
                seen = false;
                Inside::Comment
            }
            Inside::String(depth) if c == '"' => Inside::Brackets(depth),
            Inside::Command if c == '`' => Inside::Brackets(0),
            Inside::Code if rest.starts_with("}%") => {
                length = 2;
                Inside::Brackets(0)
            }
            Inside::Brackets(depth) => {
                if rest.starts_with("//") {
                    // The end of the line stays.
                    (length, seen) = (rest.find('\n').unwrap_or(rest.len()), false);
                    Inside::Brackets(depth)
                } else if rest.starts_with("/*") {
                    (length, seen) = (2, false);
                    Inside::Comment
                } else if rest.starts_with("%{") {
                    length = 2;
                    Inside::Code
                } else {
                    match c {
                        '"' => Inside::String(depth),
                        '`' => Inside::Command,
                        '(' | '[' | '{' => Inside::Brackets(depth + 1),
                        ')' | ']' | '}' => Inside::Brackets(depth.saturating_sub(1)),
                        _ => Inside::Brackets(depth),
                    }
                }
            }
            other => other,
        };
        if seen {
            text[at..at + length].chars().for_each(&mut see);
        }
        at += length;
    }
    inside
}

/// Returns `text` without comments.
fn without_comments(text: &str) -> String {
    let mut code = String::new();
    scan(text, Inside::Brackets(0), |c| code.push(c));
    code
}

/// A script.
#[derive(Clone, Debug)]
pub(super) struct Script {
    parts: Vec<Part>,
}

impl Script {
    /// Reads a script.
    pub(super) fn parse(text: &str) -> Self {
        // Each with whether it is an event.
        let mut parts: Vec<(bool, String)> = Vec::new();
        let mut inside = Inside::Brackets(0);
        for line in text.split_inclusive('\n') {
            let begins = inside == Inside::Brackets(0);
            let word = line.trim_start();
            let is_event = word.starts_with(|c: char| matches!(c, '+' | '*') || c.is_ascii_digit());
            let is_other = word.is_empty() || word.starts_with(['`', '-', '/']);
            inside = scan(line, inside, |_| {});
            match parts.last_mut() {
                // A line that begins with anything else goes on with the event before it.
                Some((_, part)) if !(begins && (is_event || is_other)) => part.push_str(line),
                _ => parts.push((begins && is_event, line.to_owned())),
            }
        }
        let parts = parts.into_iter().map(|(is_event, text)| {
            if is_event {
                Part::Event(Event::parse(&text))
            } else {
                Part::Other(text)
            }
        });
        Self {
            parts: parts.collect(),
        }
    }

    /// Returns the events.
    fn events(&self) -> impl Iterator<Item = &Event> {
        self.parts.iter().filter_map(|part| match part {
            Part::Event(event) => Some(event),
            Part::Other(_) => None,
        })
    }

    /// Returns whether a listener is opened.
    pub(super) fn has_listener(&self) -> bool {
        self.events().any(|event| event.listens().is_some())
    }

    /// Returns the IP version that the script is for, if it is for one only.
    pub(super) fn ip_version(&self) -> Option<&str> {
        self.parts.iter().find_map(|part| match part {
            Part::Other(text) => text.trim().strip_prefix("--ip_version="),
            Part::Event(_) => None,
        })
    }

    /// Returns the script with the filter, or nothing if it has no such form.
    pub(super) fn with_filter(&self, variant: Variant) -> Option<String> {
        let mut parts = self.parts.clone();
        match variant {
            Variant::Filtered => (),
            Variant::AfterData => accept_after_data(&mut parts)?,
            Variant::Deadline => parts.iter_mut().for_each(accept_later),
        }
        // A call that blocks beside other events must do so.
        let waits = self
            .events()
            .any(|event| event.accepts().is_some() && event.call().is_some_and(|c| c.blocks));
        let mut text = String::new();
        for part in &parts {
            match part {
                Part::Other(other) => text.push_str(other),
                Part::Event(event) => {
                    if let Some(listener) = event.listens() {
                        set_filter(&mut text, listener, variant, waits);
                    }
                    text.push_str(&event.text());
                }
            }
        }
        Some(text)
    }
}

/// Adds the calls that set the filter on `listener`, before it listens: later they would wait for
/// two RCU grace periods, which is more than the times of some scripts allow.
fn set_filter(text: &mut String, listener: i64, variant: Variant, waits: bool) {
    if !text.ends_with('\n') {
        text.push('\n');
    }
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "+0 setsockopt({listener}, SOL_TCP, {TCP_ULP}, \"dataready\", 9) = 0"
    );
    if variant == Variant::Deadline {
        let _ = writeln!(
            text,
            "+0 setsockopt({listener}, {ACCF_CONFIG}, [{DEADLINE_MS}], 4) = 0"
        );
    } else if !waits {
        // An accept() that finds no connection fails, and does not wait until the time limit.
        let _ = writeln!(text, "+0 fcntl({listener}, F_SETFL, O_RDWR|O_NONBLOCK) = 0");
    }
}

/// Calls `accept()` later by [`LATER_USECS`], unless the script says when it returns.
fn accept_later(part: &mut Part) {
    if let Part::Event(event) = part {
        if event.accepts().is_some() && event.call().is_some_and(|call| !call.blocks) {
            event.at(event.time.later(LATER_USECS));
        }
    }
}

/// Moves each `accept()`, and what prepares its socket right after it, behind the client's first
/// data, unless that came before. Returns nothing if none has to move, or one cannot because what
/// lies between needs the connection.
fn accept_after_data(parts: &mut Vec<Part>) -> Option<()> {
    let mut result: Vec<Part> = Vec::new();
    // What waits for data, and the time by which its events were later than those before them.
    let mut moved: Vec<Event> = Vec::new();
    let mut accepted = None;
    let mut skipped = 0;
    let (mut has_data, mut has_moved) = (false, false);
    for part in parts.drain(..) {
        let Part::Event(mut event) = part else {
            result.push(part);
            continue;
        };
        if event.accepts().is_some() && !has_data {
            let Time::After(time, None) = event.time else {
                return None;
            };
            if accepted.is_some() || event.call().is_some_and(|call| call.blocks) {
                return None;
            }
            accepted = event.accepts();
            skipped += time;
            event.at(Time::After(0, None));
            moved.push(event);
            continue;
        }
        if let Some(descriptor) = accepted {
            match (&event.action, &event.time) {
                (Action::Data | Action::Segment, _) => (),
                (Action::Call(_), Time::After(time, None)) if event.prepares(descriptor) => {
                    skipped += time;
                    event.at(Time::After(0, None));
                    moved.push(event);
                    continue;
                }
                _ => return None,
            }
        }
        match event.action {
            Action::Syn => has_data = false,
            Action::Data => has_data = true,
            _ => (),
        }
        // The events that stay keep their times.
        if event.time != Time::Other("*".to_owned()) {
            event.at(event.time.later(std::mem::take(&mut skipped)));
        }
        result.push(Part::Event(event));
        if has_data && accepted.take().is_some() {
            has_moved = true;
            result.extend(moved.drain(..).map(Part::Event));
        }
    }
    *parts = result;
    (has_moved && accepted.is_none()).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The beginning of a script: a listener, and a client that connects.
    const BEGIN: &str = "// A server. +0 listen(9, 1) = 0\n--mss=1000\n\n`./prepare.sh\n\
                         +0 is no event here`\n\n    0 socket(..., SOCK_STREAM, 0) = 3\n   \
                         +0 bind(3, ..., ...) = 0\n   +0 listen(3, 1) = 0  // Here.\n\n   \
                         +0 < S 0:0(0) win 32792 <mss 1000>\n   +0 > S. 0:0(0) ack 1 <...>\n  \
                         +.1 < . 1:1(0) ack 1 win 257\n";

    /// What the filter adds to it.
    const FILTER: &str = "+0 setsockopt(3, SOL_TCP, 31, \"dataready\", 9) = 0\n";

    /// What makes an early `accept()` fail.
    const AT_ONCE: &str = "+0 fcntl(3, F_SETFL, O_RDWR|O_NONBLOCK) = 0\n";

    /// What sets the deadline.
    const DEADLINE: &str = "+0 setsockopt(3, 0xACCF, 1, [5], 4) = 0\n";

    /// Returns the beginning with `added` before `listen()`.
    fn begin(added: &[&str]) -> String {
        let listen = "   +0 listen(3, 1) = 0  // Here.\n";
        BEGIN.replace(listen, &format!("{}{listen}", added.concat()))
    }

    /// Rewrites a client that connects and then `rest`.
    fn rewritten(variant: Variant, rest: &str) -> Option<String> {
        Script::parse(&format!("{BEGIN}{rest}")).with_filter(variant)
    }

    #[test]
    fn a_script_without_a_filter_is_what_it_was() {
        let texts = [
            "",
            "+0 write(4,\n  ..., 5)\n  = 5\n",
            "* > . 1:1(0) ack 1\n",
            "+1 %{ a\nb }%",
        ];
        for rest in texts {
            let text = format!("{BEGIN}{rest}");
            let script = Script::parse(&text);
            let parts = script.parts.iter().map(|part| match part {
                Part::Other(text) => text.clone(),
                Part::Event(event) => event.text(),
            });
            assert_eq!(parts.collect::<String>(), text);
        }
    }

    #[test]
    fn the_filter_is_set_on_each_listener_that_succeeds() {
        let rest = "+0 close(3) = 0\n+.5 listen(17, 8) = 0\n+0 listen(5, 1) = -1 EINVAL (x)\n\
                    +0 %{\n+0 listen(6, 1) = 0\n}%\n/* +0\n+0 listen(7, 1) = 0\n*/\n";
        let text = rewritten(Variant::Filtered, rest).unwrap();
        assert!(text.starts_with(&begin(&[FILTER, AT_ONCE])), "{text}");
        assert_eq!(text.matches("dataready").count(), 2, "{text}");
        let second = "+0 close(3) = 0\n+0 setsockopt(17, SOL_TCP, 31, \"dataready\", 9) = 0\n\
                      +0 fcntl(17, F_SETFL, O_RDWR|O_NONBLOCK) = 0\n+.5 listen(17, 8) = 0\n";
        assert!(text.contains(second), "{text}");
    }

    #[test]
    fn scripts_with_a_listener_are_recognised() {
        assert!(Script::parse(BEGIN).has_listener());
        let client = "0 socket(..., SOCK_STREAM, 0) = 3\n// +0 listen(3, 1) = 0\n";
        assert!(!Script::parse(client).has_listener());
        assert!(!Script::parse("0 listen(3, 1) = -1 EINVAL (x)\n").has_listener());
        let text = format!("--ip_version=ipv6\n{BEGIN}");
        assert_eq!(Script::parse(&text).ip_version(), Some("ipv6"));
        assert_eq!(Script::parse(BEGIN).ip_version(), None);
    }

    #[test]
    fn accept_keeps_its_place_without_another_form() {
        let rest = "+0 accept(3, ..., ...) = 4\n+0 < P. 1:11(10) ack 1 win 257\n";
        let text = rewritten(Variant::Filtered, rest).unwrap();
        assert_eq!(text, begin(&[FILTER, AT_ONCE]) + rest);
    }

    #[test]
    fn a_deadline_comes_with_a_later_accept() {
        let rest = "   +.002 accept(3, ..., ...) = 4\n+0 write(4, ..., 10) = 10\n";
        let later = "+0.012000 accept(3, ..., ...) = 4\n+0 write(4, ..., 10) = 10\n";
        let text = rewritten(Variant::Deadline, rest).unwrap();
        assert_eq!(text, begin(&[FILTER, DEADLINE]) + later);
        // One that is to fail stays where it is.
        let rest = "+0 accept(3, ..., ...) = -1 EAGAIN (x)\n";
        let text = rewritten(Variant::Deadline, rest).unwrap();
        assert_eq!(text, begin(&[FILTER, DEADLINE]) + rest);
    }

    #[test]
    fn an_accept_that_blocks_beside_other_events_stays() {
        let rest = "+0...0.200 accept(3, ..., ...) = 4\n+0 < P. 1:11(10) ack 1 win 257\n";
        let text = rewritten(Variant::Filtered, rest).unwrap();
        assert_eq!(text, begin(&[FILTER]) + rest);
        let text = rewritten(Variant::Deadline, rest).unwrap();
        assert_eq!(text, begin(&[FILTER, DEADLINE]) + rest);
        assert_eq!(rewritten(Variant::AfterData, rest), None);
    }

    #[test]
    fn accept_moves_behind_the_first_data_and_all_else_keeps_its_time() {
        let rest = "+.002 accept(3, ..., ...) = 4\n+.5 setsockopt(4, A, B, [1], 4) = 0\n\
                    // Data.\n+.1 < . 1:1(0) ack 1 win 300\n+.1~+.2 > . 1:1(0) ack 1\n\
                    +.3 < P. 1:11(10) ack 1 win 257\n+0 > . 1:1(0) ack 11\n\
                    +0 read(4, ..., 10) = 10\n";
        let moved = "// Data.\n+0.602000 < . 1:1(0) ack 1 win 300\n+.1~+.2 > . 1:1(0) ack 1\n\
                     +.3 < P. 1:11(10) ack 1 win 257\n+0.000000 accept(3, ..., ...) = 4\n\
                     +0.000000 setsockopt(4, A, B, [1], 4) = 0\n+0 > . 1:1(0) ack 11\n\
                     +0 read(4, ..., 10) = 10\n";
        let text = rewritten(Variant::AfterData, rest).unwrap();
        assert_eq!(text, begin(&[FILTER, AT_ONCE]) + moved);
    }

    #[test]
    fn a_range_of_times_is_moved_as_a_whole() {
        let rest = "+.01 accept(3, ..., ...) = 4\n+.1~+.2 > . 1:1(0) ack 1\n+0 < F. 1:1(0) ack 1\n";
        let text = rewritten(Variant::AfterData, rest).unwrap();
        let wanted = "+0.110000~+0.210000 > . 1:1(0) ack 1\n+0 < F. 1:1(0) ack 1\n+0.000000 accept";
        assert!(text.contains(wanted), "{text}");
    }

    #[test]
    fn accept_does_not_move_past_what_needs_the_connection() {
        let data = "+0 < P. 1:11(10) ack 1 win 257\n";
        for between in [
            "+0 write(4, ..., 10) = 10\n",
            "+0 %{ assert tcpi_unacked == 0 }%\n",
            "+0 `ss -t`\n",
            "+0 close(3) = 0\n",
        ] {
            let rest = format!("+0 accept(3, ..., ...) = 4\n{between}{data}");
            assert_eq!(rewritten(Variant::AfterData, &rest), None, "{between}");
        }
        // No data at all, a reset, a quoted segment, and data that came before.
        for rest in [
            "+0 accept(3, ..., ...) = 4\n+0 < . 1:1(0) ack 1 win 257\n".to_owned(),
            "+0 accept(3, ..., ...) = 4\n+0 < R. 1:1(0) ack 1 win 257\n".to_owned(),
            "+0 accept(3, ..., ...) = 4\n+0 < icmp unreachable [1:11(10)]\n".to_owned(),
            format!("{data}+0 accept(3, ..., ...) = 4\n+0 read(4, ..., 10) = 10\n"),
        ] {
            assert_eq!(rewritten(Variant::AfterData, &rest), None, "{rest}");
        }
    }

    #[test]
    fn data_of_one_client_is_none_of_the_next() {
        let next = "+0 close(3) = 0\n+0 < S 0:0(0) win 9\n+0 accept(3, ..., ...) = 5\n\
                    +0 < . 1:2(1) ack 1 win 257\n";
        let rest = format!("+0 < . 1:2(1) ack 1 win 257\n+0 accept(3, ..., ...) = 4\n{next}");
        let text = rewritten(Variant::AfterData, &rest).unwrap();
        let order = ["(1) ack", ") = 4", "< S 0", "(1) ack", ") = 5"];
        let mut left = text.split_once("ack 1 win 257\n").unwrap().1;
        for word in order {
            left = left
                .split_once(word)
                .unwrap_or_else(|| panic!("{word}: {text}"))
                .1;
        }
    }

    #[test]
    fn times_are_read_and_written() {
        for (text, time) in [
            ("+0", Time::After(0, None)),
            ("+.002", Time::After(2_000, None)),
            ("+1.5~+2", Time::After(1_500_000, Some(2_000_000))),
            ("0.1", Time::Other("0.1".to_owned())),
            ("*", Time::Other("*".to_owned())),
        ] {
            assert_eq!(Time::parse(text), time);
            assert_eq!(Time::parse(&time.text()), time);
        }
    }
}
