// SPDX-License-Identifier: MIT OR Apache-2.0
//! Lists the listeners of all processes that have an accept filter, with the kernel's `sock_diag`.

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU32;

use netlink_packet_core::{
    NetlinkHeader, NetlinkMessage, NetlinkPayload, NlasIterator, NLM_F_DUMP, NLM_F_REQUEST,
};
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags,
};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::Socket;

use crate::abi::{
    self, ACCF_ULP_INFO_CONFIG, ACCF_ULP_INFO_STATS, INET_DIAG_ULP_INFO, INET_ULP_INFO_NAME,
};
use crate::{Config, Error, Stats, DATAREADY};

/// The size of the buffer for one answer. The kernel fills a larger buffer no further than this.
const ANSWER_MAX: usize = 32 * 1024;

/// A listener that has an accept filter.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Listener {
    /// The address that it listens on. An IPv6 listener on `[::]` may accept IPv4, too.
    pub address: SocketAddr,
    /// The index of the interface that it is bound to (`SO_BINDTODEVICE`), if it is.
    pub interface: Option<NonZeroU32>,
    /// The filter's name.
    pub filter: String,
    /// The filter's settings.
    pub config: Config,
    /// The filter's statistics.
    pub stats: Stats,
    /// Now: connections that wait for `accept()`.
    pub accept_queue: u32,
    /// How many connections may wait for `accept()`: the argument of `listen()`, at most
    /// `net.core.somaxconn`.
    pub backlog: u32,
    /// The user ID of its owner.
    pub uid: u32,
    /// The socket's inode: the number in `/proc/PID/fd` (`socket:[…]`) of processes that have it
    /// open.
    pub inode: u32,
    /// The socket's cookie (`SO_COOKIE`), which identifies the socket.
    pub cookie: u64,
}

impl Listener {
    /// Returns a listener on `address` with `filter` whose other fields are zero or `None`, for the
    /// tests of programs.
    pub fn new(address: SocketAddr, filter: &str) -> Self {
        Self {
            address,
            interface: None,
            filter: filter.to_owned(),
            config: Config::default(),
            stats: Stats::default(),
            accept_queue: 0,
            backlog: 0,
            uid: 0,
            inode: 0,
            cookie: 0,
        }
    }
}

/// Returns all listeners that have an accept filter, of any process in the calling thread's network
/// namespace. Those on IPv4 addresses come first; otherwise the order is undefined.
///
/// The caller needs no privilege. If listeners come and go during the call, one may be missing or
/// be there twice (with the same [`cookie`](Listener::cookie)).
///
/// # Errors
///
/// [`Error::NoSockDiag`], [`Error::NoDetails`], [`Error::Malformed`], [`Error::Os`].
pub fn listeners() -> Result<Vec<Listener>, Error> {
    listeners_on(0)
}

/// Returns the [`listeners()`] on `port`; 0 means any port.
///
/// Listeners with `SO_REUSEPORT` or with different addresses may share a port.
///
/// # Errors
///
/// Those of [`listeners()`].
pub fn listeners_on(port: u16) -> Result<Vec<Listener>, Error> {
    let socket = Socket::new(NETLINK_SOCK_DIAG).map_err(Error::diag)?;
    let mut found = Vec::new();
    for (family, mut id) in [
        (AF_INET, SocketId::new_v4()),
        (AF_INET6, SocketId::new_v6()),
    ] {
        id.source_port = port;
        let request = SockDiagMessage::InetRequest(InetRequest {
            family,
            protocol: IPPROTO_TCP,
            // Makes the kernel add INET_DIAG_ULP_INFO.
            extensions: ExtensionFlags::INFO,
            states: StateFlags::LISTEN,
            socket_id: id,
        });
        dump(&socket, request, &mut found)?;
    }
    Ok(found)
}

/// Sends `request` and adds the listeners that have a filter to `found`.
fn dump(socket: &Socket, request: SockDiagMessage, found: &mut Vec<Listener>) -> Result<(), Error> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0).map_err(Error::diag)?;

    let mut answer = Vec::with_capacity(ANSWER_MAX);
    loop {
        answer.clear();
        socket.recv(&mut answer, 0).map_err(Error::diag)?;
        if read_answer(&answer, found)? == Progress::Complete {
            return Ok(());
        }
    }
}

/// Whether the kernel will send more answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Incomplete,
    Complete,
}

/// Reads the messages of one answer and adds the listeners that have a filter to `found`.
fn read_answer(mut answer: &[u8], found: &mut Vec<Listener>) -> Result<Progress, Error> {
    while !answer.is_empty() {
        let message = NetlinkMessage::<SockDiagMessage>::deserialize(answer)?;
        let length = usize::try_from(message.header.length).unwrap_or(usize::MAX);
        match message.payload {
            NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                found.extend(listener(&response)?);
            }
            NetlinkPayload::Error(error) => return Err(Error::diag(error.to_io())),
            // An error may end the dump.
            NetlinkPayload::Done(done) if done.code < 0 => {
                let source = io::Error::from_raw_os_error(done.code.saturating_neg());
                return Err(Error::diag(source));
            }
            NetlinkPayload::Done(_) => return Ok(Progress::Complete),
            _ => {}
        }
        // Messages are aligned to four bytes.
        let next = length.checked_next_multiple_of(4).unwrap_or(usize::MAX);
        answer = answer.get(next..).unwrap_or_default();
    }
    Ok(Progress::Incomplete)
}

/// Returns the listener that `response` describes, if it has a filter.
fn listener(response: &InetResponse) -> Result<Option<Listener>, Error> {
    let header = &response.header;
    let id = &header.socket_id;
    let Some(ulp) = ulp(&response.nlas) else {
        return Ok(None);
    };
    let ulp = Ulp::parse(&ulp)?;
    let address = SocketAddr::new(id.source_address, id.source_port);
    let (config, stats) = match (ulp.config, ulp.stats) {
        (Some(config), Some(stats)) => (config, stats),
        _ if ulp.name == DATAREADY => {
            return Err(Error::NoDetails {
                filter: ulp.name,
                address,
            });
        }
        // Another upper layer protocol, such as tls or mptcp.
        _ => return Ok(None),
    };
    Ok(Some(Listener {
        address,
        interface: NonZeroU32::new(id.interface_id),
        filter: ulp.name,
        config,
        stats,
        accept_queue: header.recv_queue,
        backlog: header.send_queue,
        uid: header.uid,
        inode: header.inode,
        cookie: cookie(id.cookie),
    }))
}

/// Decodes a socket's cookie: two words in the machine's byte order, the low word first.
fn cookie([a, b, c, d, e, f, g, h]: [u8; 8]) -> u64 {
    let low = u32::from_ne_bytes([a, b, c, d]);
    let high = u32::from_ne_bytes([e, f, g, h]);
    u64::from(high) << 32 | u64::from(low)
}

/// Returns the value of `INET_DIAG_ULP_INFO`, if there is one.
fn ulp(attributes: &[Nla]) -> Option<Vec<u8>> {
    use netlink_packet_core::Nla as _;
    attributes.iter().find_map(|attribute| match attribute {
        Nla::Other(other) if other.kind() == INET_DIAG_ULP_INFO => {
            let mut value = vec![0; other.value_len()];
            other.emit_value(&mut value);
            Some(value)
        }
        _ => None,
    })
}

/// The contents of `INET_DIAG_ULP_INFO`.
#[derive(Debug, Default)]
struct Ulp {
    name: String,
    config: Option<Config>,
    stats: Option<Stats>,
}

impl Ulp {
    /// Decodes nested attributes.
    fn parse(nested: &[u8]) -> Result<Self, Error> {
        let mut ulp = Self::default();
        for attribute in NlasIterator::new(nested) {
            let attribute = attribute?;
            let value = attribute.value();
            match attribute.kind() {
                INET_ULP_INFO_NAME => {
                    let name = value.split(|byte| *byte == 0).next().unwrap_or_default();
                    ulp.name = String::from_utf8_lossy(name).into_owned();
                }
                ACCF_ULP_INFO_CONFIG => ulp.config = Some(Config::from_abi(&abi::decode(value))),
                ACCF_ULP_INFO_STATS => ulp.stats = Some(Stats::from_abi(&abi::decode(value))),
                _ => {}
            }
        }
        Ok(ulp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_core::{DefaultNla, DoneMessage, ErrorMessage, NLM_F_MULTIPART};
    use netlink_packet_sock_diag::constants::TCP_LISTEN;
    use netlink_packet_sock_diag::inet::InetResponseHeader;
    use std::time::Duration;
    use zerocopy::IntoBytes;

    use crate::abi::{accf_config, accf_stats};

    /// Writes a message as the kernel does, padded to a multiple of four.
    fn message(payload: NetlinkPayload<SockDiagMessage>) -> Vec<u8> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_MULTIPART;
        let mut message = NetlinkMessage::new(header, payload);
        message.finalize();
        let mut bytes = vec![0; message.buffer_len().next_multiple_of(4)];
        message.serialize(&mut bytes);
        bytes
    }

    /// Writes an attribute, padded to a multiple of four.
    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(value.len() + 4).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    /// Writes the description of a listener on port 8080 with `nested` in `INET_DIAG_ULP_INFO`.
    fn described(id: SocketId, nested: Option<Vec<u8>>) -> Vec<u8> {
        let ulp = nested.map(|nested| Nla::Other(DefaultNla::new(INET_DIAG_ULP_INFO, nested)));
        let attributes = [
            Some(Nla::Shutdown(0)),
            Some(Nla::TcpInfo(vec![0; 232])),
            ulp,
            Some(Nla::Congestion("cubic".to_owned())),
        ];
        let response = InetResponse {
            header: InetResponseHeader {
                family: if id.source_address.is_ipv4() {
                    AF_INET
                } else {
                    AF_INET6
                },
                state: TCP_LISTEN,
                timer: None,
                socket_id: SocketId {
                    source_port: 8080,
                    cookie: [1, 0, 0, 0, 2, 0, 0, 0],
                    interface_id: 3,
                    ..id
                },
                recv_queue: 4,
                send_queue: 128,
                uid: 1000,
                inode: 77,
            },
            nlas: attributes.into_iter().flatten().collect(),
        };
        message(SockDiagMessage::InetResponse(Box::new(response)).into())
    }

    /// Writes the attributes that the module adds for a listener.
    fn details() -> Vec<u8> {
        let config = accf_config {
            timeout_ms: 1500,
            max_parked: 0,
            on_timeout: 1,
            state: 0,
            on_close: 0,
            probe_ms: 0,
        };
        let stats = accf_stats {
            parked: 5,
            ..accf_stats::default()
        };
        let mut nested = attribute(INET_ULP_INFO_NAME, b"dataready\0");
        nested.extend(attribute(ACCF_ULP_INFO_CONFIG, config.as_bytes()));
        nested.extend(attribute(ACCF_ULP_INFO_STATS, stats.as_bytes()));
        nested
    }

    /// Reads one answer.
    fn read(answer: &[u8]) -> Result<(Progress, Vec<Listener>), Error> {
        let mut found = Vec::new();
        let progress = read_answer(answer, &mut found)?;
        Ok((progress, found))
    }

    #[test]
    fn only_listeners_with_a_filter_are_returned() {
        let mut answer = described(SocketId::new_v4(), None);
        answer.extend(described(SocketId::new_v6(), Some(details())));
        let mptcp = attribute(INET_ULP_INFO_NAME, b"mptcp\0");
        answer.extend(described(SocketId::new_v4(), Some(mptcp)));
        let (progress, found) = read(&answer).unwrap();
        assert_eq!(progress, Progress::Incomplete);
        let [listener] = found.as_slice() else {
            panic!("{found:?}");
        };
        assert_eq!(listener.address, "[::]:8080".parse().unwrap());
        assert_eq!(listener.interface, NonZeroU32::new(3));
        assert_eq!(listener.filter, "dataready");
        assert_eq!(listener.config.timeout, Some(Duration::from_millis(1500)));
        assert_eq!(listener.config.on_timeout, crate::OnTimeout::Reset);
        assert_eq!(listener.stats.parked, 5);
        assert_eq!((listener.accept_queue, listener.backlog), (4, 128));
        assert_eq!((listener.uid, listener.inode), (1000, 77));
    }

    #[test]
    fn a_cookie_has_its_low_word_first() {
        let bytes: Vec<u8> = [7_u32, 9].iter().flat_map(|w| w.to_ne_bytes()).collect();
        assert_eq!(cookie(bytes.try_into().unwrap()), 9 << 32 | 7);
    }

    #[test]
    fn details_of_other_versions_are_decoded() {
        let mut nested = attribute(INET_ULP_INFO_NAME, b"dataready\0");
        nested.extend(attribute(ACCF_ULP_INFO_CONFIG, &7_u32.to_ne_bytes()));
        nested.extend(attribute(ACCF_ULP_INFO_STATS, &[1; 1000]));
        let ulp = Ulp::parse(&nested).unwrap();
        let config = ulp.config.unwrap();
        assert_eq!(config.timeout, Some(Duration::from_millis(7)));
        assert_eq!(config.max_parked, None);
        assert_eq!(ulp.stats.unwrap().wait_log2, [0x0101_0101_0101_0101; 32]);
    }

    #[test]
    fn a_filter_without_details_is_an_error() {
        let name = attribute(INET_ULP_INFO_NAME, b"dataready\0");
        let error = read(&described(SocketId::new_v4(), Some(name))).unwrap_err();
        assert!(matches!(error, Error::NoDetails { .. }), "{error}");
        assert!(error.to_string().contains("0.0.0.0:8080"));
    }

    #[test]
    fn the_end_of_the_dump_may_be_an_error() {
        let done = |code| {
            let mut done = DoneMessage::default();
            done.code = code;
            message(NetlinkPayload::Done(done))
        };
        let mut answer = described(SocketId::new_v4(), Some(details()));
        answer.extend(done(0));
        let (progress, found) = read(&answer).unwrap();
        assert_eq!((progress, found.len()), (Progress::Complete, 1));
        let error = read(&done(-libc::ENOENT)).unwrap_err();
        assert!(matches!(error, Error::NoSockDiag), "{error}");
        let mut refused = ErrorMessage::default();
        refused.code = std::num::NonZeroI32::new(-libc::EPERM);
        let error = read(&message(NetlinkPayload::Error(refused))).unwrap_err();
        assert_eq!(error.errno(), Some(libc::EPERM));
    }

    #[test]
    fn a_truncated_answer_is_never_complete() {
        let answer = described(SocketId::new_v4(), Some(details()));
        for length in 1..answer.len() {
            // A truncated answer must neither panic nor look complete.
            if let Ok((progress, _)) = read(&answer[..length]) {
                assert_eq!(progress, Progress::Incomplete);
            }
        }
        assert!(read(&answer[..10]).is_err());
    }

    proptest::proptest! {
        /// Any bytes decode to a result or an error.
        #[test]
        fn arbitrary_answers_do_not_panic(
            v6 in proptest::bool::ANY,
            cut in 0_usize..200,
            changes in proptest::collection::vec((0_usize..1100, proptest::num::u8::ANY), 0..8),
        ) {
            let id = if v6 {
                SocketId::new_v6()
            } else {
                SocketId::new_v4()
            };
            let mut answer = described(id.clone(), Some(details()));
            answer.extend(described(id, Some(details())));
            for (at, byte) in changes {
                if let Some(to) = answer.get_mut(at) {
                    *to = byte;
                }
            }
            answer.truncate(answer.len() - cut);
            if let Ok((_, found)) = read(&answer) {
                proptest::prop_assert!(found.len() <= 2);
            }
        }
    }
}
