// SPDX-License-Identifier: MIT OR Apache-2.0
//! Writes listeners as JSON, with the names and units of `accf.h`.

use std::net::IpAddr;

use accf::{Config, Listener, Stats};
use anyhow::{Context, Result};
use serde::Serialize;

use crate::text;

/// The whole answer.
#[derive(Serialize)]
struct View {
    module: ModuleView,
    listeners: Vec<ListenerView>,
}

/// The module.
#[derive(Serialize)]
struct ModuleView {
    /// Whether the module cannot be unloaded until the next reboot, or null if that is unknown.
    pinned: Option<bool>,
}

/// A listener.
#[derive(Serialize)]
struct ListenerView {
    address: IpAddr,
    port: u16,
    /// The interface that the socket is bound to, or null.
    interface: Option<String>,
    filter: String,
    uid: u32,
    inode: u32,
    /// Connections that wait for `accept()`.
    accept_queue: u32,
    /// The limit of `accept_queue`.
    backlog: u32,
    config: ConfigView,
    stats: StatsView,
}

/// The settings of a listener, as the module returns them: a `timeout_ms` of 0 means "none".
#[derive(Serialize)]
struct ConfigView {
    timeout_ms: u64,
    max_parked: u32,
    /// A word, or the number of an action that this program does not know.
    on_timeout: String,
    /// A word, or the number of a state that this program does not know.
    state: String,
    /// A word, or the number of an action that this program does not know.
    on_close: String,
    /// 0: as `SO_KEEPALIVE` says.
    probe_ms: u64,
}

/// The statistics of a listener.
#[derive(Serialize)]
struct StatsView {
    parked: u64,
    half_open: i64,
    half_open_young: i64,
    parked_total: u64,
    released_data: u64,
    released_fin: u64,
    timeout_accept: u64,
    timeout_reset: u64,
    timeout_drop: u64,
    evicted: u64,
    aborted: u64,
    fallback: u64,
    synack_suppressed: u64,
    bypass_syncookie: u64,
    bypass_fastopen: u64,
    bypass_abort_on_overflow: u64,
    bypass_accept_queue_full: u64,
    bypass_no_memory: u64,
    bypass_namespace_limit: u64,
    bypass_signed: u64,
    bypass_other: u64,
    released_paused: u64,
    bypass_paused: u64,
    closed_reset: u64,
    closed_reset_unparked: u64,
    evicted_greediest: u64,
    released_late: u64,
    overflow_dropped: u64,
    probes: u64,
    died: u64,
    /// The sources that have the most, the first one most of all.
    sources: Vec<SourceView>,
    /// The buckets of `wait_log2` with their bounds.
    waits: Vec<WaitView>,
}

/// A source: an IPv4 address, or the first address of an IPv6 /64.
#[derive(Serialize)]
struct SourceView {
    address: IpAddr,
    parked: u64,
}

/// A bucket of the histogram: `from_ms <= wait < to_ms`. `to_ms` is null in the last bucket.
#[derive(Serialize)]
struct WaitView {
    from_ms: u64,
    to_ms: Option<u64>,
    count: u64,
}

/// Writes a JSON object with the listeners, and with whether the module is pinned.
pub(crate) fn render(listeners: &[&Listener], pinned: Option<bool>) -> Result<String> {
    let view = View {
        module: ModuleView { pinned },
        listeners: listeners.iter().map(|one| listener(one)).collect(),
    };
    let mut text = serde_json::to_string_pretty(&view).context("cannot write JSON")?;
    text.push('\n');
    Ok(text)
}

fn listener(listener: &Listener) -> ListenerView {
    ListenerView {
        address: listener.address.ip(),
        port: listener.address.port(),
        interface: text::interface(listener),
        filter: listener.filter.clone(),
        uid: listener.uid,
        inode: listener.inode,
        accept_queue: listener.accept_queue,
        backlog: listener.backlog,
        config: config(&listener.config),
        stats: stats(&listener.stats),
    }
}

fn config(config: &Config) -> ConfigView {
    ConfigView {
        timeout_ms: config.timeout.map_or(0, milliseconds),
        max_parked: config.max_parked.map_or(0, |max| max.get()),
        on_timeout: config.on_timeout.to_string(),
        state: config.state.to_string(),
        on_close: config.on_close.to_string(),
        probe_ms: config.probe.map_or(0, milliseconds),
    }
}

fn stats(stats: &Stats) -> StatsView {
    StatsView {
        parked: stats.parked,
        half_open: stats.half_open,
        half_open_young: stats.half_open_young,
        parked_total: stats.parked_total,
        released_data: stats.released_data,
        released_fin: stats.released_fin,
        timeout_accept: stats.timeout_accept,
        timeout_reset: stats.timeout_reset,
        timeout_drop: stats.timeout_drop,
        evicted: stats.evicted,
        aborted: stats.aborted,
        fallback: stats.fallback,
        synack_suppressed: stats.synack_suppressed,
        bypass_syncookie: stats.bypass_syncookie,
        bypass_fastopen: stats.bypass_fastopen,
        bypass_abort_on_overflow: stats.bypass_abort_on_overflow,
        bypass_accept_queue_full: stats.bypass_accept_queue_full,
        bypass_no_memory: stats.bypass_no_memory,
        bypass_namespace_limit: stats.bypass_namespace_limit,
        bypass_signed: stats.bypass_signed,
        bypass_other: stats.bypass_other,
        released_paused: stats.released_paused,
        bypass_paused: stats.bypass_paused,
        closed_reset: stats.closed_reset,
        closed_reset_unparked: stats.closed_reset_unparked,
        evicted_greediest: stats.evicted_greediest,
        released_late: stats.released_late,
        overflow_dropped: stats.overflow_dropped,
        probes: stats.probes,
        died: stats.died,
        sources: stats
            .sources
            .iter()
            .flatten()
            .map(|source| SourceView {
                address: source.address,
                parked: source.parked,
            })
            .collect(),
        waits: stats
            .waits()
            .map(|bucket| WaitView {
                from_ms: milliseconds(bucket.from),
                to_ms: bucket.to.map(milliseconds),
                count: bucket.count,
            })
            .collect(),
    }
}

/// Returns the milliseconds of a time, which are whole.
fn milliseconds(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;
    use serde_json::Value;

    /// Writes a listener and parses the JSON.
    fn read(listener: &Listener) -> Value {
        let text = render(&[listener], Some(false)).unwrap();
        let mut value: Value = serde_json::from_str(&text).unwrap();
        value["listeners"][0].take()
    }

    #[test]
    fn the_object_tells_whether_the_module_is_pinned() {
        for (pinned, expected) in [
            (Some(true), Value::Bool(true)),
            (Some(false), Value::Bool(false)),
            (None, Value::Null),
        ] {
            let text = render(&[], pinned).unwrap();
            let value: Value = serde_json::from_str(&text).unwrap();
            let expected = serde_json::json!({"module": {"pinned": expected}, "listeners": []});
            assert_eq!(value, expected);
        }
    }

    #[test]
    fn settings_have_the_units_of_the_header() {
        let busy = read(&sample::busy());
        assert_eq!(busy["address"], "::");
        assert_eq!(busy["port"], 8080);
        assert_eq!(busy["interface"], Value::Null);
        assert_eq!(busy["config"]["timeout_ms"], 1500);
        assert_eq!(busy["config"]["max_parked"], 2000);
        assert_eq!(busy["config"]["on_timeout"], "reset");
        assert_eq!(busy["config"]["state"], "parking");
        assert_eq!(busy["config"]["on_close"], "reset");
        assert_eq!(busy["config"]["probe_ms"], 200_000);
        let unused = read(&sample::unused());
        assert_eq!(unused["config"]["timeout_ms"], 0);
        assert_eq!(unused["config"]["max_parked"], 0);
        let paused = read(&sample::paused());
        assert_eq!(paused["config"]["state"], "paused");
    }

    #[test]
    fn every_counter_has_its_name_in_the_header() {
        let stats = read(&sample::busy())["stats"].take();
        let header = include_str!("../../../../module/uapi/accf.h");
        let (_, body) = header.split_once("struct accf_stats {").unwrap();
        let (body, _) = body.split_once("\n};").unwrap();
        let names: Vec<&str> = body
            .lines()
            .filter_map(|line| line.trim().strip_prefix("__")?.split(' ').nth(1))
            .filter_map(|name| name.strip_suffix(';'))
            .filter(|name| !name.starts_with("wait_log2"))
            .collect();
        for name in &names {
            // No counter of the sample is zero.
            assert!(stats[name].as_i64() > Some(0), "{name}");
        }
        assert_eq!(stats.as_object().unwrap().len(), names.len() + 2);
    }

    #[test]
    fn sources_have_addresses() {
        let sources = read(&sample::busy())["stats"]["sources"].take();
        let expected = serde_json::json!([
            {"address": "198.51.100.7", "parked": 6},
            {"address": "2001:db8:1:2::", "parked": 4},
        ]);
        assert_eq!(sources, expected);
        let none = read(&sample::unused())["stats"]["sources"].take();
        assert_eq!(none, serde_json::json!([]));
    }

    #[test]
    fn the_histogram_has_bounds() {
        let waits = read(&sample::busy())["stats"]["waits"].take();
        let waits = waits.as_array().unwrap();
        assert_eq!(waits.len(), accf::WAIT_BUCKETS);
        assert_eq!(waits[3]["from_ms"], 4);
        assert_eq!(waits[3]["to_ms"], 8);
        assert_eq!(waits[3]["count"], 7);
        assert_eq!(waits[31]["to_ms"], Value::Null);
    }
}
