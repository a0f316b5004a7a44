// SPDX-License-Identifier: MIT OR Apache-2.0

//! Requests of generic netlink.

use anyhow::{bail, ensure, Context, Result};
use netlink_packet_core::{DefaultNla, Emitable, NLM_F_ACK, NLM_F_REQUEST};
use netlink_sys::protocols::NETLINK_GENERIC;
use netlink_sys::{Socket, SocketAddr};

/// The message that tells whether a request was done (`NLMSG_ERROR`).
const ERROR: u16 = 2;
/// The lengths of a `struct nlmsghdr` and a `struct genlmsghdr`.
const HEADER: usize = 16;
const GENERIC_HEADER: usize = 4;

/// Returns an attribute.
pub(crate) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let attribute = DefaultNla::new(kind, value.to_vec());
    let mut bytes = vec![0; attribute.buffer_len()];
    attribute.emit(&mut bytes);
    bytes
}

/// Returns an attribute that holds others (`NLA_F_NESTED`).
pub(crate) fn nested(kind: u16, attributes: &[u8]) -> Vec<u8> {
    const NESTED: u16 = 1 << 15;
    attribute(kind | NESTED, attributes)
}

/// Returns the value of an attribute of an answer.
fn find(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    const KIND: u16 = 0x3fff;
    while let [l0, l1, k0, k1, ..] = *attributes {
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        if u16::from_ne_bytes([k0, k1]) & KIND == wanted {
            return attributes.get(4..length);
        }
        attributes = attributes.get(length.max(4).next_multiple_of(4)..)?;
    }
    None
}

/// A family of generic netlink in one namespace.
pub(crate) struct Family {
    socket: Socket,
    number: u16,
}

impl Family {
    /// Opens a family by its name in the calling thread's namespace.
    pub(crate) fn open_here(name: &str) -> Result<Self> {
        const CONTROLLER: u16 = 16;
        const GET_FAMILY: u8 = 3;
        const NAME: u16 = 2;
        const NUMBER: u16 = 1;
        let mut socket = Socket::new(NETLINK_GENERIC).context("netlink socket")?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        let controller = Self {
            socket,
            number: CONTROLLER,
        };
        let name = attribute(NAME, &[name.as_bytes(), &[0]].concat());
        let (kind, answer) = controller.ask(GET_FAMILY, &name, 0)?;
        if kind == ERROR {
            verdict(&answer)?;
        }
        let attributes = answer.get(GENERIC_HEADER..).unwrap_or_default();
        let number = find(attributes, NUMBER).and_then(|value| value.try_into().ok());
        Ok(Self {
            socket: controller.socket,
            number: u16::from_ne_bytes(number.context("a family without a number")?),
        })
    }

    /// Sends a command and waits until the kernel has done it.
    pub(crate) fn tell(&self, command: u8, attributes: &[u8]) -> Result<()> {
        match self.ask(command, attributes, NLM_F_ACK)? {
            (ERROR, answer) => verdict(&answer),
            (kind, _) => bail!("generic netlink answers by a message of type {kind}"),
        }
    }

    /// Sends a command, and returns the type of the answer, and what it says.
    fn ask(&self, command: u8, attributes: &[u8], flags: u16) -> Result<(u16, Vec<u8>)> {
        const VERSION: u8 = 1;
        let length = HEADER + GENERIC_HEADER + attributes.len();
        let mut message = Vec::new();
        message.extend(u32::try_from(length)?.to_ne_bytes());
        message.extend(self.number.to_ne_bytes());
        message.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        // Number of the message, and of the sender.
        message.extend([0; 8]);
        message.extend([command, VERSION, 0, 0]);
        message.extend(attributes);
        self.socket.send(&message, 0)?;
        let (answer, _) = self.socket.recv_from_full()?;
        let kind = answer.get(4..6).and_then(|kind| kind.try_into().ok());
        let kind = u16::from_ne_bytes(kind.context("an answer without a header")?);
        Ok((kind, answer.get(HEADER..).unwrap_or_default().to_vec()))
    }
}

/// Returns the error that an answer tells of.
fn verdict(answer: &[u8]) -> Result<()> {
    let code = answer.get(..4).and_then(|code| code.try_into().ok());
    let code = i32::from_ne_bytes(code.context("an error without a number")?);
    ensure!(code <= 0, "generic netlink answers {code}");
    if code < 0 {
        return Err(std::io::Error::from_raw_os_error(-code).into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attribute_is_found_behind_others() {
        let attributes = [attribute(7, b"odd"), nested(2, &attribute(3, b"four"))].concat();
        assert_eq!(attributes.len(), 8 + 4 + 8);
        assert_eq!(find(&attributes, 7), Some(&b"odd"[..]));
        let inner = find(&attributes, 2).unwrap();
        assert_eq!(find(inner, 3), Some(&b"four"[..]));
        assert_eq!(find(&attributes, 3), None);
        assert_eq!(find(&[0; 8], 1), None);
    }

    #[test]
    fn an_error_is_told() {
        assert!(verdict(&0_i32.to_ne_bytes()).is_ok());
        assert!(verdict(&(-2_i32).to_ne_bytes()).is_err());
        assert!(verdict(&[]).is_err());
    }

    #[test]
    fn the_controller_is_a_family() {
        assert_eq!(Family::open_here("nlctrl").unwrap().number, 16);
        assert!(Family::open_here("no such family").is_err());
    }
}
