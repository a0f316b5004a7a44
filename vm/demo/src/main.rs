// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guest side of the demo: runs the scenarios, and leaves what it saw in `$ACCF_OUT`.
//!
//! It judges nothing: the host side (`xtask/src/demo/`) does, from the packets and the times
//! recorded here.

#![forbid(unsafe_code)]

mod exchange;
mod http;
mod path;
mod repeat;
mod setup;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use accf_demo::{Exchange, GuestReport, Scenario, REPORT_FILE, SCHEMA};
use accf_kit::capture::{Capture, Trace};
use accf_kit::clock::Pulse;
use accf_kit::module;
use anyhow::{Context, Result};
use pcap_file::pcap::{PcapHeader, PcapPacket, PcapWriter};
use pcap_file::{DataLink, TsResolution};

use crate::repeat::best_run;
use crate::setup::Setup;

/// Round-trip time that netem gives the path, half of it in each direction.
const RTT: Duration = Duration::from_millis(40);

/// The deadline in (a), (b) and (c), which no client reaches.
const PATIENT: Duration = Duration::from_secs(60);
/// The deadline in (d), which the silent client reaches.
const DEADLINE: Duration = Duration::from_secs(5);

/// How late the machine may be while times of a few milliseconds are measured.
const TOLERABLE: Duration = Duration::from_millis(10);
/// The same while deadlines are measured.
const TOLERABLE_AT_DEADLINE: Duration = Duration::from_millis(25);

/// The pause between the warm-up and the first measurement.
const PAUSE: Duration = Duration::from_secs(1);

const CLIENT_CAPTURE: &str = "client.pcap";
const SERVER_CAPTURE: &str = "server.pcap";

fn main() -> Result<()> {
    let out = env::var_os("ACCF_OUT").map(PathBuf::from).context(
        "ACCF_OUT is not set: it names the directory for the results, as `cargo xtask demo` does",
    )?;
    let begun = Instant::now();

    let pulse = Pulse::start();
    let path = path::Path::lay(RTT)?;
    let wire = path.wire();
    let client_capture = Capture::start(&wire.client, path::INTERFACE)?;
    let server_capture = Capture::start(&wire.server, path::INTERFACE)?;
    say("measuring the path");
    let measured = path.measure()?;

    // The guest has loaded the module; each listener sets its own deadline and `on_timeout`.
    let setups = |scenario: Scenario| -> Vec<Setup> {
        let deadline = match scenario {
            Scenario::Silent => DEADLINE,
            _ => PATIENT,
        };
        let setup = |listener: &_| Setup {
            listener: *listener,
            deadline,
        };
        scenario.listeners().iter().map(setup).collect()
    };
    let best_of = |tolerable, scenario: &dyn Fn() -> Result<Vec<Exchange>>| {
        let mut best = best_run(&pulse, tolerable, scenario)?;
        let (late_us, runs) = (best.late_us(), best.runs);
        for exchange in &mut best.result {
            (exchange.machine_late_us, exchange.runs) = (late_us, runs);
        }
        anyhow::Ok(best.result)
    };
    say("warming up");
    exchange::warm_up(wire, &setups(Scenario::Silent))?;
    thread::sleep(PAUSE);
    say("(a) RFC 793 client: 6 s of silence");
    let mut exchanges = best_of(TOLERABLE, &|| {
        exchange::rfc793(wire, &setups(Scenario::Rfc793))
    })?;
    say("(b) piggyback client");
    exchanges.extend(best_of(TOLERABLE, &|| {
        exchange::piggyback(wire, &setups(Scenario::Piggyback))
    })?);
    say("(c) load balancer and one-worker servers: starting them");
    let requests = http::run(wire, &setups(Scenario::LoadBalancer), &pulse)?;
    say("(d) silent client: 10 s");
    exchanges.extend(best_of(TOLERABLE_AT_DEADLINE, &|| {
        exchange::silent(wire, &setups(Scenario::Silent))
    })?);

    // The last segments arrive at both ends.
    thread::sleep(4 * RTT);
    save(&client_capture.stop()?, &out.join(CLIENT_CAPTURE))?;
    save(&server_capture.stop()?, &out.join(SERVER_CAPTURE))?;
    say("unloading the module");
    module::unload(Duration::from_secs(10)).context("after the demo")?;

    let report = GuestReport {
        schema: SCHEMA,
        kernel_release: fs::read_to_string("/proc/sys/kernel/osrelease")?
            .trim()
            .to_owned(),
        path: measured,
        exchanges,
        requests,
        client_capture: CLIENT_CAPTURE.to_owned(),
        server_capture: SERVER_CAPTURE.to_owned(),
        took_ms: u64::try_from(begun.elapsed().as_millis())?,
    };
    // Renamed into place: a report is whole or absent.
    let (new, path) = (
        out.join(format!("{REPORT_FILE}.new")),
        out.join(REPORT_FILE),
    );
    fs::write(&new, serde_json::to_vec_pretty(&report)?)
        .and_then(|()| fs::rename(&new, &path))
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(())
}

/// Prints what the demo does next.
fn say(what: &str) {
    println!("demo: {what}");
}

/// Writes a trace as a pcap file of IP packets, with nanoseconds.
fn save(trace: &Trace, path: &Path) -> Result<()> {
    let header = PcapHeader {
        datalink: DataLink::RAW,
        ts_resolution: TsResolution::NanoSecond,
        ..PcapHeader::default()
    };
    let file =
        fs::File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    let mut writer = PcapWriter::with_header(std::io::BufWriter::new(file), header)?;
    for packet in &trace.packets {
        let length = u32::try_from(packet.bytes.len())?;
        writer.write_packet(&PcapPacket::new(packet.at.epoch(), length, &packet.bytes))?;
    }
    Ok(())
}
