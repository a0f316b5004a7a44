// SPDX-License-Identifier: MIT OR Apache-2.0
//! Writes the packets of one listener as a pcapng file, with comments on what the packets do not
//! show.

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::Duration;

use accf_demo::{Listener, UnixNanos};
use anyhow::Result;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::blocks::section_header::{SectionHeaderBlock, SectionHeaderOption};
use pcap_file::pcapng::{PcapNgBlock, PcapNgWriter};
use pcap_file::Endianness;

use super::capture::{Capture, Frame, Tcp};
use super::facts::{Facts, Findings};
use super::ms;

/// `if_tsresol`: units of 10⁻⁹ seconds, which is what this crate writes.
const NANOSECONDS: u8 = 9;

/// Returns a capture of the server's end with all packets to and from the ports of `listener`.
pub(crate) fn of_listener(
    findings: &Findings,
    server: &Capture,
    listener: Listener,
) -> Result<Vec<u8>> {
    let connections: HashMap<(u16, u16), &Facts> = findings
        .facts
        .iter()
        .filter(|facts| facts.exchange.listener == listener)
        .map(|facts| {
            (
                (facts.exchange.client_port, facts.exchange.server_port),
                facts,
            )
        })
        .collect();
    let served = || {
        findings
            .guest
            .requests
            .iter()
            .filter(|r| r.listener == listener)
    };
    let ports: Vec<u16> = connections
        .keys()
        .map(|(_, server_port)| *server_port)
        .collect();
    let belongs = |tcp: &Tcp| {
        let ends = [tcp.source_port, tcp.destination_port];
        ends.iter()
            .any(|port| ports.contains(port) || served().any(|r| r.server_port == *port))
    };
    let frames: Vec<(&Frame, Tcp)> = server
        .frames
        .iter()
        .filter_map(|frame| Some((frame, frame.tcp.filter(belongs)?)))
        .collect();

    let mut comments: Vec<Vec<String>> = vec![Vec::new(); frames.len()];
    let mut comment = |at: Option<usize>, words: String| {
        if let Some(comments) = at.and_then(|at| comments.get_mut(at)) {
            comments.push(words);
        }
    };
    let is_syn = |tcp: &Tcp| tcp.flags.syn && !tcp.flags.ack;
    for ((client_port, server_port), facts) in &connections {
        let exchange = &facts.exchange;
        let ours = |tcp: &Tcp| {
            let ends = (tcp.source_port, tcp.destination_port);
            ends == (*client_port, *server_port) || ends == (*server_port, *client_port)
        };
        let first = frames.iter().position(|(_, tcp)| ours(tcp) && is_syn(tcp));
        let scenario = exchange.scenario;
        let heading = format!(
            "accf ({}) {}. Listener: {}.",
            scenario.key(),
            scenario.title(),
            exchange.setting
        );
        comment(first, heading);
        let reset = frames
            .iter()
            .position(|(_, tcp)| ours(tcp) && tcp.flags.rst && tcp.source_port == *server_port);
        if let (Some(_), None) = (reset, &exchange.accepted) {
            let error = exchange
                .client
                .error
                .as_ref()
                .map_or("nothing", |error| &error.name);
            comment(
                reset,
                format!("accf: the server never accepted; the client got {error}"),
            );
        }
        if let Some(accepted) = &exchange.accepted {
            let before = |at: UnixNanos| at <= accepted.at;
            let last = frames
                .iter()
                .rposition(|(frame, tcp)| ours(tcp) && before(frame.at));
            let later = last
                .and_then(|i| frames.get(i))
                .map(|(f, _)| accepted.at.ms_since(f.at));
            let rtt = facts.rtt_ms().map_or_else(String::new, ms);
            let rto = facts.rto_ms().map_or_else(String::new, ms);
            let later = later.map_or_else(String::new, |later| format!("{later:.3} ms"));
            comment(
                last,
                format!("accf: accept() returned {later} later; RTT {rtt}, RTO {rto}"),
            );
        }
    }
    for request in served() {
        for (i, port) in request.idle_ports.iter().enumerate() {
            let ends = (*port, request.server_port);
            let syn = frames.iter().position(|(_, tcp)| {
                (tcp.source_port, tcp.destination_port) == ends && is_syn(tcp)
            });
            let (server, setting) = (request.server.title(), &request.setting);
            let heading = format!(
                "accf (c) idle connection {}, {server}, listener: {setting}",
                i + 1
            );
            comment(syn, heading);
        }
        let syn = frames.iter().position(|(_, tcp)| {
            Some(tcp.source_port) == request.curl_port
                && tcp.destination_port == request.server_port
                && is_syn(tcp)
        });
        let outcome = request.time_to_first_byte_ms.map_or_else(
            || "curl gave up".into(),
            |t| format!("first byte after {}", ms(t)),
        );
        comment(
            syn,
            format!("accf (c) the real request, by curl: {outcome}"),
        );
    }

    let section = SectionHeaderBlock {
        endianness: Endianness::Little,
        options: vec![
            SectionHeaderOption::Comment(Cow::Owned(format!(
                "{listener} listener, seen at the server's end. {}.",
                findings.guest.path.description
            ))),
            SectionHeaderOption::OS(Cow::Owned(format!(
                "Linux {}",
                findings.guest.kernel_release
            ))),
            SectionHeaderOption::UserApplication(Cow::Borrowed("accf demo")),
        ],
        ..SectionHeaderBlock::default()
    };
    let mut writer = PcapNgWriter::with_section_header(Vec::new(), section)?;
    let interface = InterfaceDescriptionBlock {
        linktype: server.link,
        snaplen: 0,
        options: vec![
            InterfaceDescriptionOption::IfName(Cow::Borrowed("server")),
            InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
        ],
    };
    writer.write_block(&interface.into_block())?;
    for ((frame, _), comments) in frames.iter().zip(comments) {
        let comments = comments
            .into_iter()
            .map(|c| EnhancedPacketOption::Comment(Cow::Owned(c)));
        let packet = EnhancedPacketBlock {
            interface_id: 0,
            timestamp: Duration::from_nanos(frame.at.0),
            original_len: frame.original_len,
            data: Cow::Borrowed(&frame.bytes),
            options: comments.collect(),
        };
        writer.write_block(&packet.into_block())?;
    }
    Ok(writer.into_inner())
}

#[cfg(test)]
mod tests {
    use pcap_file::pcapng::{Block, PcapNgReader};

    use super::*;
    use crate::demo::sample::sample;

    #[test]
    fn every_packet_of_the_listener_is_in_its_file_with_its_time() {
        let sample = sample();
        let findings = sample.findings();
        let mut in_all_files = 0;
        for listener in Listener::ALL {
            let file = of_listener(&findings, &sample.server, listener).unwrap();
            let mut reader = PcapNgReader::new(file.as_slice()).unwrap();
            let mut comments = Vec::new();
            while let Some(block) = reader.next_block() {
                let Block::EnhancedPacket(packet) = block.unwrap() else {
                    continue;
                };
                let at = UnixNanos(u64::try_from(packet.timestamp.as_nanos()).unwrap());
                let original = sample
                    .server
                    .frames
                    .iter()
                    .find(|f| f.at == at && f.bytes == *packet.data);
                assert!(
                    original.is_some(),
                    "{listener}: a packet that was not captured"
                );
                in_all_files += 1;
                comments.extend(packet.options.iter().filter_map(|option| match option {
                    EnhancedPacketOption::Comment(words) => Some(words.to_string()),
                    _ => None,
                }));
            }
            let accepts = comments
                .iter()
                .filter(|c| c.contains("accept() returned"))
                .count();
            let nevers = comments
                .iter()
                .filter(|c| c.contains("never accepted"))
                .count();
            let wanted = match listener {
                Listener::DatareadyReset | Listener::DatareadyDrop => (0, 1),
                _ => (3, 0),
            };
            assert_eq!((accepts, nevers), wanted, "{listener}: {comments:?}");
        }
        assert_eq!(in_all_files, sample.server.frames.len());
    }
}
