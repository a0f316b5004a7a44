// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the kernel knows about a connection: `TCP_INFO` with units.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::libc;

use crate::sys;

/// The states of a TCP socket, as the kernel numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum State {
    Established,
    SynSent,
    SynRecv,
    FinWait1,
    FinWait2,
    TimeWait,
    Close,
    CloseWait,
    LastAck,
    Listen,
    Closing,
    NewSynRecv,
    /// A number this code does not know.
    Other(u8),
}

impl From<u8> for State {
    fn from(number: u8) -> Self {
        match number {
            1 => Self::Established,
            2 => Self::SynSent,
            3 => Self::SynRecv,
            4 => Self::FinWait1,
            5 => Self::FinWait2,
            6 => Self::TimeWait,
            7 => Self::Close,
            8 => Self::CloseWait,
            9 => Self::LastAck,
            10 => Self::Listen,
            11 => Self::Closing,
            12 => Self::NewSynRecv,
            other => Self::Other(other),
        }
    }
}

/// A connection's figures; see `struct tcp_info` in `linux/tcp.h`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpInfo {
    /// The socket's state.
    pub state: State,
    /// The retransmission timeout.
    pub rto: Duration,
    /// How long ago data was sent; before any was, how long ago the kernel made the socket. In
    /// whole clock ticks.
    pub since_data_sent: Duration,
    /// The smoothed round-trip time.
    pub rtt: Duration,
    /// The round-trip time's mean deviation.
    pub rtt_var: Duration,
    /// The shortest round-trip time seen.
    pub min_rtt: Duration,
    /// On a listener: connections that wait for `accept()`. Elsewhere: segments not acknowledged.
    pub unacked: u32,
    /// Retransmitted segments, over the connection's life.
    pub total_retrans: u32,
    /// The path MTU, in bytes.
    pub path_mtu: u32,
    /// Bytes received.
    pub bytes_received: u64,
    /// Segments received.
    pub segs_in: u32,
}

impl TcpInfo {
    /// Asks the kernel about a TCP socket.
    pub fn of(socket: impl AsFd) -> io::Result<Self> {
        parsed(socket, Self::parse)
    }

    /// Reads the structure as the kernel wrote it; nothing, if it is shorter than a kernel of this
    /// decade's.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let byte = |at: usize| bytes.get(at).copied();
        let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let long = |at: usize| Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let millis = |at: usize| Some(Duration::from_millis(u64::from(word(at)?)));
        let micros = |at: usize| Some(Duration::from_micros(u64::from(word(at)?)));
        Some(Self {
            state: State::from(byte(0)?),
            rto: micros(8)?,
            since_data_sent: millis(44)?,
            rtt: micros(68)?,
            rtt_var: micros(72)?,
            min_rtt: micros(148)?,
            unacked: word(24)?,
            total_retrans: word(100)?,
            path_mtu: word(60)?,
            bytes_received: long(128)?,
            segs_in: word(140)?,
        })
    }
}

/// The fields of `struct tcp_info`: name, offset and size.
const FIELDS: [(&str, usize, usize); 70] = [
    ("state", 0, 1),
    ("ca_state", 1, 1),
    ("retransmits", 2, 1),
    ("probes", 3, 1),
    ("backoff", 4, 1),
    ("options", 5, 1),
    ("wscales", 6, 1),
    ("app_limited and fastopen_client_fail", 7, 1),
    ("rto", 8, 4),
    ("ato", 12, 4),
    ("snd_mss", 16, 4),
    ("rcv_mss", 20, 4),
    ("unacked", 24, 4),
    ("sacked", 28, 4),
    ("lost", 32, 4),
    ("retrans", 36, 4),
    ("fackets", 40, 4),
    ("last_data_sent", 44, 4),
    ("last_ack_sent", 48, 4),
    ("last_data_recv", 52, 4),
    ("last_ack_recv", 56, 4),
    ("pmtu", 60, 4),
    ("rcv_ssthresh", 64, 4),
    ("rtt", 68, 4),
    ("rttvar", 72, 4),
    ("snd_ssthresh", 76, 4),
    ("snd_cwnd", 80, 4),
    ("advmss", 84, 4),
    ("reordering", 88, 4),
    ("rcv_rtt", 92, 4),
    ("rcv_space", 96, 4),
    ("total_retrans", 100, 4),
    ("pacing_rate", 104, 8),
    ("max_pacing_rate", 112, 8),
    ("bytes_acked", 120, 8),
    ("bytes_received", 128, 8),
    ("segs_out", 136, 4),
    ("segs_in", 140, 4),
    ("notsent_bytes", 144, 4),
    ("min_rtt", 148, 4),
    ("data_segs_in", 152, 4),
    ("data_segs_out", 156, 4),
    ("delivery_rate", 160, 8),
    ("busy_time", 168, 8),
    ("rwnd_limited", 176, 8),
    ("sndbuf_limited", 184, 8),
    ("delivered", 192, 4),
    ("delivered_ce", 196, 4),
    ("bytes_sent", 200, 8),
    ("bytes_retrans", 208, 8),
    ("dsack_dups", 216, 4),
    ("reord_seen", 220, 4),
    ("rcv_ooopack", 224, 4),
    ("snd_wnd", 228, 4),
    ("rcv_wnd", 232, 4),
    ("rehash", 236, 4),
    ("total_rto", 240, 2),
    ("total_rto_recoveries", 242, 2),
    ("total_rto_time", 244, 4),
    ("received_ce", 248, 4),
    ("delivered_e1_bytes", 252, 4),
    ("delivered_e0_bytes", 256, 4),
    ("delivered_ce_bytes", 260, 4),
    ("received_e1_bytes", 264, 4),
    ("received_e0_bytes", 268, 4),
    ("received_ce_bytes", 272, 4),
    // Of bit-fields: AccECN's mode, whether its option was seen, and what has failed.
    ("ecn_mode, accecn_opt_seen, accecn_fail_mode", 276, 1),
    ("options2, bits 0 to 7", 277, 1),
    ("options2, bits 8 to 15", 278, 1),
    ("options2, bits 16 to 23", 279, 1),
];

/// Returns what `parse` makes of the bytes of `TCP_INFO`.
fn parsed<T>(socket: impl AsFd, parse: impl FnOnce(&[u8]) -> Option<T>) -> io::Result<T> {
    let mut bytes = [0u8; 512];
    let len = sys::get_option(
        socket.as_fd(),
        libc::IPPROTO_TCP,
        libc::TCP_INFO,
        &mut bytes,
    )?;
    bytes
        .get(..len)
        .and_then(parse)
        .ok_or_else(|| io::Error::other(format!("TCP_INFO of {len} bytes is too short")))
}

/// Returns all fields of `TCP_INFO` by name, as numbers in the kernel's units.
pub fn all(socket: impl AsFd) -> io::Result<Vec<(&'static str, u64)>> {
    parsed(socket, |bytes| {
        let field = |&(name, at, size): &(&'static str, usize, usize)| {
            let mut number = [0; 8];
            number
                .get_mut(..size)?
                .copy_from_slice(bytes.get(at..at + size)?);
            Some((name, u64::from_ne_bytes(number)))
        };
        FIELDS.iter().map(field).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_short_structure_is_refused() {
        assert_eq!(TcpInfo::parse(&[0; 151]), None);
        assert!(TcpInfo::parse(&[0; 152]).is_some());
    }

    #[test]
    fn the_fields_have_no_gaps() {
        let mut next = 0;
        for (name, at, size) in FIELDS {
            assert_eq!(at, next, "{name}");
            next = at + size;
        }
    }

    #[test]
    fn a_loopback_connection_has_plausible_figures() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(TcpInfo::of(&listener).unwrap().state, State::Listen);
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(b"hello").unwrap();
        server.read_exact(&mut [0; 5]).unwrap();
        let info = TcpInfo::of(&server).unwrap();
        assert_eq!(info.state, State::Established);
        assert_eq!(info.bytes_received, 5);
        assert_eq!(info.total_retrans, 0);
        assert!(info.segs_in >= 2, "segs_in {}", info.segs_in);
        assert!(
            info.rto >= Duration::from_millis(1) && info.rto < Duration::from_secs(2),
            "{:?}",
            info.rto
        );
        assert!(
            info.rtt > Duration::ZERO && info.rtt < Duration::from_secs(1),
            "{:?}",
            info.rtt
        );
        assert!(info.min_rtt <= info.rtt + info.rtt_var * 4);
        assert!(info.path_mtu >= 576);
    }
}
