// SPDX-License-Identifier: MIT OR Apache-2.0

//! What clients and servers send to each other.

/// What a connection's two sides send to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exchange {
    /// The client sends its name, and the server replies by that name: a connection that is handed to
    /// the wrong client shows.
    Names,
    /// The client sends random bytes and the end of the stream; the server sends the same back.
    Echo,
}

/// Both a request and its reply are this long: a word, a number, the end of the line.
pub(crate) const LENGTH: usize = 5 + 16 + 1;

/// The request of clients that have no name.
pub(crate) const ANONYMOUS: &[u8] = b"GET / HTTP/1.0\r\n\r\n";

impl Exchange {
    /// Makes a client's request.
    pub(crate) fn request(self, name: u64, rng: &mut fastrand::Rng) -> Vec<u8> {
        const MOST: usize = 4000;
        match self {
            Self::Names => format!("hello{name:016x}\n").into_bytes(),
            Self::Echo => {
                let length = rng.usize(1..MOST);
                std::iter::repeat_with(|| rng.u8(..)).take(length).collect()
            }
        }
    }
}

/// The reply to the request of a client called `name`.
pub(crate) fn reply(name: u64) -> Vec<u8> {
    format!("reply{name:016x}\n").into_bytes()
}

/// Returns the name in a request; nothing, if it is none.
pub(crate) fn name_in(request: &[u8]) -> Option<u64> {
    let digits = request.strip_prefix(b"hello")?.strip_suffix(b"\n")?;
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back() {
        let request = Exchange::Names.request(0x1234, &mut fastrand::Rng::with_seed(1));
        assert_eq!((request.len(), reply(1).len()), (LENGTH, LENGTH));
        assert_eq!(name_in(&request), Some(0x1234));
        assert_eq!(name_in(&reply(0x1234)), None);
        assert_eq!(name_in(b"hello"), None);
    }
}
