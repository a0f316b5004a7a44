// SPDX-License-Identifier: MIT OR Apache-2.0

//! What clients and servers send to each other: a request that says whose it is, and a reply that
//! repeats it. A connection that is handed to the wrong client shows.

use anyhow::{ensure, Context as _, Result};

/// The request of clients without names.
pub(crate) const ANONYMOUS: &[u8] = b"GET / HTTP/1.0\r\n\r\n";

/// A word, a name, a length, the end of the line.
const HEADER: usize = 5 + 16 + 4 + 1;

/// Makes the request of a client called `name`, with `length` random bytes.
pub(crate) fn request(name: u64, length: u16, rng: &mut fastrand::Rng) -> Vec<u8> {
    let mut request = format!("hello{name:016x}{length:04x}\n").into_bytes();
    request.extend(std::iter::repeat_with(|| rng.u8(..)).take(length.into()));
    request
}

/// Makes the reply to a request; nothing, if there is none.
pub(crate) fn reply(request: &[u8]) -> Vec<u8> {
    let rest = request.strip_prefix(b"hello");
    rest.map_or_else(Vec::new, |rest| [b"reply", rest].concat())
}

/// Returns whether a request has arrived as a whole; fails if this is none, or more than one.
pub(crate) fn is_whole(heard: &[u8]) -> Result<bool> {
    let Some((header, body)) = heard.split_at_checked(HEADER) else {
        return Ok(false);
    };
    let digits = header
        .strip_prefix(b"hello")
        .and_then(|it| it.strip_suffix(b"\n"))
        .filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
    let digits = digits.and_then(|digits| std::str::from_utf8(digits).ok()?.get(16..));
    let length = digits.and_then(|digits| usize::from_str_radix(digits, 16).ok());
    let text = || String::from_utf8_lossy(header).into_owned();
    let length = length.with_context(|| format!("no client sends {:?}", text()))?;
    ensure!(body.len() <= length, "more than the request {:?}", text());
    Ok(body.len() == length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_comes_in_pieces_and_is_repeated() {
        let request = request(0x1234, 100, &mut fastrand::Rng::with_seed(1));
        for length in [0, 5, HEADER, 50] {
            assert!(!is_whole(&request[..length]).unwrap());
        }
        assert!(is_whole(&request).unwrap());
        assert!(is_whole(&[&request[..], b"x"].concat()).is_err());
        let mut other = request.clone();
        other[6] = b'?';
        assert!(is_whole(&other).is_err());
        let reply = reply(&request);
        assert_eq!(reply.get(5..), request.get(5..));
        assert!(is_whole(&reply).is_err());
    }
}
