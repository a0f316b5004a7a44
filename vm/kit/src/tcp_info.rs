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
        let mut bytes = [0u8; 512];
        let len = sys::get_option(
            socket.as_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            &mut bytes,
        )?;
        bytes
            .get(..len)
            .and_then(Self::parse)
            .ok_or_else(|| io::Error::other(format!("TCP_INFO of {len} bytes is too short")))
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
