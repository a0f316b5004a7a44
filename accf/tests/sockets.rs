// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tests of sockets without a filter. They need no module.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use accf::{Config, Error};
use socket2::{Domain, Protocol, Socket, Type};

/// Returns a listener on a free port.
fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

#[test]
fn a_listener_without_a_filter_has_neither_settings_nor_statistics() {
    let listener = listener();
    assert!(matches!(accf::config(&listener), Err(Error::NoFilter)));
    assert!(matches!(accf::stats(&listener), Err(Error::NoFilter)));
    let set = accf::set_config(&listener, &Config::default());
    assert!(matches!(set, Err(Error::NoFilter)));
    assert_eq!(accf::attached(&listener).unwrap(), None);
}

#[test]
fn an_unknown_filter_is_named() {
    match accf::attach(listener(), "no-such-filter") {
        Err(Error::NoSuchFilter { name }) => assert_eq!(name, "no-such-filter"),
        // A kernel without upper layer protocols.
        Err(Error::NotTcp) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn invalid_names_are_refused() {
    for name in ["", "sixteen-letters-", "nul\0"] {
        let result = accf::attach(listener(), name);
        assert!(matches!(result, Err(Error::InvalidName { .. })), "{name:?}");
    }
}

#[test]
fn a_timeout_of_zero_is_refused() {
    let config = Config {
        timeout: Some(Duration::ZERO),
        ..Config::default()
    };
    let result = accf::set_config(listener(), &config);
    assert!(matches!(result, Err(Error::TimeoutOutOfRange(_))));
}

#[test]
fn sockets_of_other_protocols_have_no_filters() {
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let path = std::env::temp_dir().join(format!("accf-test-{}", std::process::id()));
    let unix = UnixListener::bind(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(accf::stats(&udp), Err(Error::NoFilter)));
    assert!(matches!(accf::stats(&unix), Err(Error::NoFilter)));
    assert!(accf::attach(&udp, accf::DATAREADY).is_err());
    assert!(accf::attach(&unix, accf::DATAREADY).is_err());
}

#[test]
fn an_mptcp_socket_is_recognized() {
    // IPPROTO_MPTCP.
    let Ok(mptcp) = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::from(262))) else {
        // A kernel without MPTCP. The unit tests of `Error` have the same case without a socket.
        return;
    };
    mptcp
        .bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())
        .unwrap();
    for listens in [false, true] {
        if listens {
            mptcp.listen(1).unwrap();
        }
        let error = accf::attach(&mptcp, accf::DATAREADY).unwrap_err();
        assert!(
            matches!(error, Error::Mptcp),
            "listens: {listens}, {error:?}"
        );
    }
}

#[test]
fn a_udp_socket_is_not_taken_for_mptcp() {
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let error = accf::attach(&udp, accf::DATAREADY).unwrap_err();
    assert!(matches!(error, Error::NotTcp), "{error:?}");
}

#[test]
fn a_listener_without_a_filter_is_not_listed() {
    let listener = listener();
    let address = listener.local_addr().unwrap();
    match accf::listeners_on(address.port()) {
        Ok(found) => assert!(found.iter().all(|found| found.address != address)),
        // A kernel without sock_diag, or one that forbids it to the test.
        Err(Error::NoSockDiag | Error::Os { .. }) => {}
        Err(error) => panic!("{error:?}"),
    }
}
