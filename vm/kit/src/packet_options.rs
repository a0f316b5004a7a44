// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a TCP socket tells of the packets that it was made of: their TTL, TOS, interface and flow
//! label.

use std::io;
use std::os::fd::AsFd;

use nix::libc;

use crate::endpoint::Family;
use crate::sys;

/// Asks for IP's options: interface, TTL and TOS.
const ASK_V4: [i32; 3] = [libc::IP_PKTINFO, libc::IP_RECVTTL, libc::IP_RECVTOS];
/// `IPV6_FLOWINFO` of `linux/in6.h`.
const FLOWINFO: i32 = 11;
/// `IPV6_2292PKTOPTIONS`.
const PKTOPTIONS_V6: i32 = 6;
/// `IP_PKTOPTIONS`.
const PKTOPTIONS_V4: i32 = 9;
/// `IPV6_FLOWLABEL_MGR`, the size of its structure, and where that has the label and the flags.
const FLOW_LABEL: i32 = 32;
const FLOW_LABEL_SIZE: usize = 32;
const LABEL: usize = 16;
const FLAGS: usize = 22;
/// `IPV6_FL_F_REFLECT` and `IPV6_FL_F_REMOTE`.
const REFLECT: u16 = 4;
const REMOTE: u16 = 8;

/// One control message: level, type, data.
pub type Message = (i32, i32, Vec<u8>);

/// Which control messages of IPv6 to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// All of them. A listener then also keeps the SYN for them.
    All,
    /// Traffic class and flow label, for which it keeps no SYN.
    FlowInfo,
}

fn switch_on(socket: impl AsFd, level: i32, name: i32) -> io::Result<()> {
    sys::set_option(socket.as_fd(), level, name, &1i32.to_ne_bytes())
}

/// Asks for control messages, on a listener for its children, or on an accepted socket.
pub fn ask(socket: impl AsFd, family: Family, ask: Ask) -> io::Result<()> {
    if family.is_v4_on_the_wire() {
        for name in ASK_V4 {
            switch_on(&socket, libc::SOL_IP, name)?;
        }
    }
    if family == Family::V4 {
        return Ok(());
    }
    for name in [libc::IPV6_RECVTCLASS, FLOWINFO] {
        switch_on(&socket, libc::SOL_IPV6, name)?;
    }
    if ask == Ask::All {
        for name in [libc::IPV6_RECVHOPLIMIT, libc::IPV6_RECVPKTINFO] {
            switch_on(&socket, libc::SOL_IPV6, name)?;
        }
    }
    Ok(())
}

/// Returns the control messages that a connection has.
pub fn told(socket: impl AsFd, family: Family) -> io::Result<Vec<Message>> {
    let mut messages = Vec::new();
    if family.is_v4_on_the_wire() {
        messages.extend(read(&socket, libc::SOL_IP, PKTOPTIONS_V4)?);
    }
    if family != Family::V4 {
        messages.extend(read(&socket, libc::SOL_IPV6, PKTOPTIONS_V6)?);
    }
    Ok(messages)
}

fn read(socket: impl AsFd, level: i32, name: i32) -> io::Result<Vec<Message>> {
    let mut bytes = [0u8; 512];
    let len = sys::get_option(socket.as_fd(), level, name, &mut bytes)?;
    parse(bytes.get(..len).unwrap_or_default())
        .ok_or_else(|| io::Error::other("a control message that is cut short"))
}

/// Splits control messages (`struct cmsghdr`).
fn parse(mut bytes: &[u8]) -> Option<Vec<Message>> {
    const HEADER: usize = 16;
    let mut messages = Vec::new();
    while bytes.len() >= HEADER {
        let len = usize::from_ne_bytes(bytes.get(..8)?.try_into().ok()?);
        let word = |at: usize| Some(i32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        messages.push((word(8)?, word(12)?, bytes.get(HEADER..len)?.to_vec()));
        bytes = bytes.get(len.next_multiple_of(8)..).unwrap_or_default();
    }
    Some(messages)
}

/// Has the children of a listener send the flow label that their client sends. The namespace must
/// not ask for consistent labels (`net.ipv6.flowlabel_consistency`).
pub fn reflect_flow_label(socket: impl AsFd) -> io::Result<()> {
    let mut request = [0; FLOW_LABEL_SIZE];
    set_flags(&mut request, REFLECT);
    sys::set_option(socket.as_fd(), libc::SOL_IPV6, FLOW_LABEL, &request)
}

/// Returns the flow label that a connection sends because it reflects that of its client, or 0; and
/// that which its client has sent.
pub fn flow_labels(socket: impl AsFd) -> io::Result<[u32; 2]> {
    let label = |flags| {
        let mut request = [0; FLOW_LABEL_SIZE];
        set_flags(&mut request, flags);
        match sys::get_option(socket.as_fd(), libc::SOL_IPV6, FLOW_LABEL, &mut request) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(0),
            result => result?,
        };
        let label = request.get(LABEL..LABEL + 4).unwrap_or_default();
        Ok::<_, io::Error>(
            label
                .iter()
                .fold(0, |sum, &byte| sum << 8 | u32::from(byte)),
        )
    };
    Ok([label(0)?, label(REMOTE)?])
}

fn set_flags(request: &mut [u8; FLOW_LABEL_SIZE], flags: u16) {
    if let Some(field) = request.get_mut(FLAGS..FLAGS + 2) {
        field.copy_from_slice(&flags.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_loopback_connection_tells_of_its_client() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        ask(&listener, Family::V4, Ask::All).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let told = told(&accepted, Family::V4).unwrap();
        let kinds: Vec<_> = told
            .iter()
            .map(|(level, kind, _)| (*level, *kind))
            .collect();
        let ip = libc::SOL_IP;
        assert_eq!(
            kinds,
            [
                (ip, libc::IP_PKTINFO),
                (ip, libc::IP_TTL),
                (ip, libc::IP_TOS)
            ]
        );
        assert_eq!(told[1].2.len(), 4);
        drop(client);
    }

    #[test]
    fn a_message_that_is_cut_short_is_refused() {
        let mut bytes = [0; 24];
        bytes[0] = 25;
        assert_eq!(parse(&bytes), None);
        bytes[0] = 20;
        assert_eq!(parse(&bytes).map(|messages| messages.len()), Some(1));
        assert_eq!(parse(&[]), Some(Vec::new()));
    }
}
