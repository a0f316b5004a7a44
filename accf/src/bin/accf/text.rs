// SPDX-License-Identifier: MIT OR Apache-2.0
//! Formats numbers, times and addresses for people.

use std::time::Duration;

use accf::{Config, Listener};

/// Formats a listener's address, with the interface that it is bound to, as `ss` does.
pub(crate) fn address(listener: &Listener) -> String {
    let address = listener.address;
    match interface(listener) {
        None => address.to_string(),
        Some(name) if address.is_ipv4() => format!("{}%{name}:{}", address.ip(), address.port()),
        Some(name) => format!("[{}]%{name}:{}", address.ip(), address.port()),
    }
}

/// Returns the name of the interface that a listener is bound to, or its index if it has no name.
pub(crate) fn interface(listener: &Listener) -> Option<String> {
    let index = listener.interface?.get();
    let name = nix::net::if_::if_indextoname(index).ok();
    let name = name.and_then(|name| name.into_string().ok());
    Some(name.unwrap_or_else(|| index.to_string()))
}

/// Formats a number with thousands separators.
pub(crate) fn number(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Formats the time of a setting exactly: settings have whole milliseconds.
pub(crate) fn exact(time: Duration) -> String {
    let (seconds, ms) = (time.as_secs(), time.subsec_millis());
    match (seconds, ms) {
        (0, ms) => format!("{ms} ms"),
        (seconds, 0) => format!("{seconds} s"),
        (seconds, ms) => format!("{seconds}.{} s", format!("{ms:03}").trim_end_matches('0')),
    }
}

/// Formats a time with up to three digits.
pub(crate) fn rough(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 1.0 {
        format!("{} ms", time.as_millis())
    } else if seconds < 100.0 {
        format!("{seconds:.1} s")
    } else if seconds < 6_000.0 {
        format!("{:.1} min", seconds / 60.0)
    } else if seconds < 360_000.0 {
        format!("{:.1} h", seconds / 3_600.0)
    } else {
        format!("{:.1} d", seconds / 86_400.0)
    }
}

/// Formats how long silent connections stay parked.
pub(crate) fn timeout(config: &Config) -> String {
    config.timeout.map_or("none".to_owned(), exact)
}

/// Formats how many connections may be parked.
pub(crate) fn max_parked(config: &Config) -> String {
    let max = config.max_parked.map(|max| number(max.get().into()));
    max.unwrap_or_else(|| "default".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_thousands_separators() {
        for (value, text) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1,000"),
            (1_234_567, "1,234,567"),
            (u64::MAX, "18,446,744,073,709,551,615"),
        ] {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn exact_times_keep_milliseconds() {
        for (ms, text) in [
            (1, "1 ms"),
            (999, "999 ms"),
            (1_000, "1 s"),
            (1_500, "1.5 s"),
            (60_001, "60.001 s"),
            (u64::from(u32::MAX), "4294967.295 s"),
        ] {
            assert_eq!(exact(Duration::from_millis(ms)), text);
        }
    }

    #[test]
    fn rough_times_have_up_to_three_digits() {
        for (ms, text) in [
            (512, "512 ms"),
            (1 << 10, "1.0 s"),
            (1 << 17, "2.2 min"),
            (1 << 23, "2.3 h"),
            (1 << 30, "12.4 d"),
        ] {
            assert_eq!(rough(Duration::from_millis(ms)), text);
        }
    }
}
