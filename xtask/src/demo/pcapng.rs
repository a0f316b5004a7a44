// SPDX-License-Identifier: MIT OR Apache-2.0
//! Writes the packets of one listener as a pcapng file, with comments on what the packets do not
//! show.

use std::borrow::Cow;
use std::time::Duration;

use accf_demo::{Listener, ServedRequest};
use anyhow::Result;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::blocks::section_header::{SectionHeaderBlock, SectionHeaderOption};
use pcap_file::pcapng::{PcapNgBlock, PcapNgWriter};
use pcap_file::Endianness;

use super::capture::{Capture, Flags, Frame, Tcp};
use super::facts::{Facts, Findings};
use super::ms;

/// `if_tsresol`: units of 10⁻⁹ seconds, which is what this crate writes.
const NANOSECONDS: u8 = 9;

/// The packets of one listener, each with its comments.
struct Packets<'a> {
    packets: Vec<(&'a Frame, Tcp, Vec<String>)>,
}

impl<'a> Packets<'a> {
    /// Selects the packets that `belongs` holds for.
    fn new(capture: &'a Capture, belongs: impl Fn(&Tcp) -> bool) -> Self {
        let packets = capture.frames.iter();
        let packets = packets.filter_map(|frame| {
            let tcp = frame.tcp.filter(|tcp| belongs(tcp))?;
            Some((frame, tcp, Vec::new()))
        });
        Self {
            packets: packets.collect(),
        }
    }

    /// Adds a comment to the first packet that `wanted` holds for.
    fn comment(&mut self, wanted: impl Fn(&Tcp) -> bool, words: impl Into<String>) {
        if let Some((_, _, comments)) = self.packets.iter_mut().find(|(_, tcp, _)| wanted(tcp)) {
            comments.push(words.into());
        }
    }

    /// Adds the comments on a connection.
    fn comment_on_connection(&mut self, facts: &Facts) {
        let exchange = &facts.exchange;
        let (client, server) = (exchange.client_port, exchange.server_port);
        let ours = |tcp: &Tcp| tcp.is_between(client, server);
        let scenario = exchange.scenario;
        let (key, title, setting) = (scenario.key(), scenario.title(), &exchange.setting);
        let heading = format!("accf ({key}) {title}. Listener: {setting}.");
        self.comment(|tcp| ours(tcp) && is_syn(tcp), heading);
        let Some(accepted) = &exchange.accepted else {
            let error = exchange.client.error.as_ref();
            let error = error.map_or("no error", |error| &error.name);
            self.comment(
                |tcp| ours(tcp) && tcp.flags.contains(Flags::RST) && tcp.source_port == server,
                format!("accf: the server never accepted; the client got {error}"),
            );
            return;
        };
        let mut packets = self.packets.iter_mut().rev();
        let last = packets.find(|(frame, tcp, _)| ours(tcp) && frame.at <= accepted.at);
        if let Some((frame, _, comments)) = last {
            let later = accepted.at.ms_since(frame.at);
            let rtt = facts.rtt_ms().map_or_else(String::new, ms);
            let rto = facts.rto_ms().map_or_else(String::new, ms);
            comments.push(format!(
                "accf: accept() returned {later:.3} ms later; RTT {rtt}, RTO {rto}"
            ));
        }
    }

    /// Adds the comments on a request of scenario (c) and its idle connections.
    fn comment_on_request(&mut self, request: &ServedRequest) {
        let opens = |tcp: &Tcp, port: Option<u16>| {
            is_syn(tcp)
                && Some(tcp.source_port) == port
                && tcp.destination_port == request.server_port
        };
        let (server, setting) = (request.server.title(), &request.setting);
        for (i, port) in (1..).zip(&request.idle_ports) {
            self.comment(
                |tcp| opens(tcp, Some(*port)),
                format!("accf (c) idle connection {i}, {server}, listener: {setting}"),
            );
        }
        let outcome = match request.time_to_first_byte_ms {
            Some(time) => format!("first byte after {}", ms(time)),
            None => "curl gave up".to_owned(),
        };
        self.comment(
            |tcp| opens(tcp, request.curl_port),
            format!("accf (c) the real request, by curl: {outcome}"),
        );
    }
}

/// Returns whether this is a SYN of a client.
fn is_syn(tcp: &Tcp) -> bool {
    tcp.flags & (Flags::SYN | Flags::ACK) == Flags::SYN
}

/// Returns a capture of the server's end with all packets to and from the ports of `listener`.
pub(crate) fn of_listener(
    findings: &Findings,
    server: &Capture,
    listener: Listener,
) -> Result<Vec<u8>> {
    let all = findings.facts.iter();
    let facts: Vec<&Facts> = all.filter(|it| it.exchange.listener == listener).collect();
    let all = findings.guest.requests.iter();
    let requests: Vec<&ServedRequest> = all.filter(|it| it.listener == listener).collect();
    let ports = facts.iter().map(|facts| facts.exchange.server_port);
    let ports = ports.chain(requests.iter().map(|request| request.server_port));
    let ports: Vec<u16> = ports.collect();
    let mut packets = Packets::new(server, |tcp| {
        ports.contains(&tcp.source_port) || ports.contains(&tcp.destination_port)
    });
    for facts in facts {
        packets.comment_on_connection(facts);
    }
    for request in requests {
        packets.comment_on_request(request);
    }

    let path = &findings.guest.path.description;
    let about = format!("{listener} listener, seen at the server's end. {path}.");
    let kernel = format!("Linux {}", findings.guest.kernel_release);
    let section = SectionHeaderBlock {
        endianness: Endianness::Little,
        options: vec![
            SectionHeaderOption::Comment(Cow::Owned(about)),
            SectionHeaderOption::OS(Cow::Owned(kernel)),
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
    for (frame, _, comments) in packets.packets {
        let comments = comments.into_iter();
        let comments = comments.map(|words| EnhancedPacketOption::Comment(Cow::Owned(words)));
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
    use accf_demo::UnixNanos;
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
                let mut frames = sample.server.frames.iter();
                let captured = frames.any(|f| f.at == at && f.bytes == *packet.data);
                assert!(captured, "{listener}: a packet that was not captured");
                in_all_files += 1;
                comments.extend(packet.options.iter().filter_map(|option| match option {
                    EnhancedPacketOption::Comment(words) => Some(words.to_string()),
                    _ => None,
                }));
            }
            let count = |words| {
                let comments = comments.iter();
                comments.filter(|it: &&String| it.contains(words)).count()
            };
            let (accepts, nevers) = (count("accept() returned"), count("never accepted"));
            let wanted = match listener {
                Listener::DatareadyReset | Listener::DatareadyDrop => (0, 1),
                _ => (3, 0),
            };
            assert_eq!((accepts, nevers), wanted, "{listener}: {comments:?}");
        }
        assert_eq!(in_all_files, sample.server.frames.len());
    }
}
