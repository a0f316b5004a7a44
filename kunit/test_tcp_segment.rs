// SPDX-License-Identifier: GPL-2.0-only

//! The timestamps of a segment, and the bytes of a rebuilt ACK.

use kernel::prelude::*;

#[kunit_tests(accf_tcp_segment)]
mod tests {
    use crate::net::{
        bindings::{
            self,
            accf_arrival,
            accf_endpoints,
            in6_addr, //
        },
        tcp_segment::{
            has_sack,
            timestamps,
            AckPacket,
            BareAck,
            Timestamps,
            AF_INET,
            AF_INET6, //
        }, //
    };

    fn ends(family: i32) -> accf_endpoints {
        let mut ends = accf_endpoints {
            family: family as u16,
            client_port: 0x1234_u16.to_be(),
            server_port: 80_u16.to_be(),
            client_v4: u32::from_ne_bytes([192, 0, 2, 1]),
            server_v4: u32::from_ne_bytes([192, 0, 2, 2]),
            ..Default::default()
        };
        ends.client_v6 = address(1);
        ends.server_v6 = address(2);
        ends
    }

    fn address(host: u8) -> in6_addr {
        let mut address = in6_addr::default();
        address.in6_u.u6_addr8 = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host];
        address
    }

    const ACK: BareAck = BareAck {
        seq: 0x0102_0304,
        ack: 0x0506_0708,
        window: 0x090a,
        timestamps: None,
        has_dsack: false,
        arrival: accf_arrival {
            ip: 64 << bindings::ACCF_HOP_LIMIT_SHIFT,
            iif: 1,
        },
        ace: 0,
    };

    #[test]
    fn an_ipv4_ack_has_these_bytes() {
        let packet = AckPacket::new(&ends(AF_INET), ACK);
        assert_eq!(packet.network_len(), 20);
        assert!(
            packet.as_bytes()
                == [
                    0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 192, 0, 2, 1, 192, 0, 2,
                    2, // IP
                    0x12, 0x34, 0, 80, 1, 2, 3, 4, 5, 6, 7, 8, 0x50, 0x10, 9, 10, 0, 0, 0, 0,
                ]
        );
    }

    #[test]
    fn an_ipv6_ack_with_timestamps_has_these_bytes() {
        let packet = AckPacket::new(
            &ends(AF_INET6),
            BareAck {
                timestamps: Some(Timestamps {
                    value: 0x1112_1314,
                    echo: 0x1516_1718,
                }),
                ..ACK
            },
        );
        let bytes = packet.as_bytes();
        assert_eq!(packet.network_len(), 40);
        assert_eq!(bytes.len(), 72);
        assert!(bytes.get(..8) == Some(&[0x60, 0, 0, 0, 0, 32, 6, 64]));
        assert!(bytes.get(23) == Some(&1));
        assert!(bytes.get(39) == Some(&2));
        assert!(bytes.get(52..54) == Some(&[0x80, 0x10]));
        assert!(
            bytes.get(60..) == Some(&[1, 1, 8, 10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18])
        );
    }

    #[test]
    fn an_ack_has_the_bits_of_ip_and_ecn() {
        let ack = BareAck {
            arrival: accf_arrival {
                ip: 0xa_bcde << bindings::ACCF_FLOW_LABEL_SHIFT
                    | 7 << bindings::ACCF_HOP_LIMIT_SHIFT
                    | 0x29 << bindings::ACCF_DSFIELD_SHIFT,
                iif: 1,
            },
            ..ACK
        };
        let packet = AckPacket::new(&ends(AF_INET), ack);
        assert!(packet.as_bytes().get(..2) == Some(&[0x45, 0x29]));
        assert!(packet.as_bytes().get(8) == Some(&7));
        let packet = AckPacket::new(&ends(AF_INET6), ack);
        assert!(packet.as_bytes().get(..4) == Some(&[0x62, 0x9a, 0xbc, 0xde]));
        assert!(packet.as_bytes().get(7) == Some(&7));
        // ECE, CWR, and AE, which is in the byte before.
        for (ace, bytes) in [
            (1, [0x50, 0x50]),
            (2, [0x50, 0x90]),
            (4, [0x51, 0x10]),
            (7, [0x51, 0xd0]),
        ] {
            let packet = AckPacket::new(&ends(AF_INET), BareAck { ace, ..ack });
            assert!(packet.as_bytes().get(32..34) == Some(&bytes));
        }
    }

    #[test]
    fn an_ack_of_two_syn_acks_says_so() {
        let packet = AckPacket::new(
            &ends(AF_INET),
            BareAck {
                has_dsack: true,
                ..ACK
            },
        );
        let bytes = packet.as_bytes();
        assert_eq!(bytes.len(), 52);
        assert!(bytes.get(32) == Some(&0x80));
        let options = bytes.get(40..).unwrap_or(&[]);
        assert!(options == [1, 1, 5, 10, 5, 6, 7, 7, 5, 6, 7, 8]);
        assert!(has_sack(options));
    }

    #[test]
    fn sack_is_found_among_options() {
        for options in [
            [].as_slice(),
            // Permitted, but no block.
            &[1, 1, 4, 2],
            // Without a block.
            &[5, 2],
            // A truncated one.
            &[5, 10, 1, 2, 3, 4, 5, 6, 7],
            // After the end of the options.
            &[0, 5, 10, 1, 2, 3, 4, 5, 6, 7, 8],
            // Inside another option.
            &[8, 10, 5, 10, 1, 2, 3, 4, 5, 6],
        ] {
            assert!(!has_sack(options));
        }
        assert!(has_sack(&[
            1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8, 1, 1, 5, 10, 1, 2, 3, 4, 5, 6, 7, 8
        ]));
    }

    #[test]
    fn timestamps_are_found_among_options() {
        let expected = Some(Timestamps {
            value: 0x0102_0304,
            echo: 0x0506_0708,
        });
        let option = [8, 10, 1, 2, 3, 4, 5, 6, 7, 8];
        let mut options = [1; 12];
        for at in 0..=2 {
            if let Some(space) = options.get_mut(at..at + 10) {
                space.copy_from_slice(&option);
            }
            assert!(timestamps(&options) == expected);
            options = [1; 12];
        }
        // After the maximum segment size.
        let mut options = [2, 4, 5, 0xb4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        if let Some(space) = options.get_mut(4..) {
            space.copy_from_slice(&option);
        }
        assert!(timestamps(&options) == expected);
    }

    #[test]
    fn malformed_options_have_no_timestamps() {
        for options in [
            [].as_slice(),
            // A truncated option.
            &[8],
            &[8, 10, 1, 2, 3, 4, 5, 6, 7],
            // After the end of the options.
            &[0, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8],
            // With another length.
            &[8, 6, 1, 2, 3, 4, 1, 1],
            // Another option: without a length, with one that is too small, or too large.
            &[3],
            &[3, 0, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8],
            &[3, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8],
            &[3, 200, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8],
        ] {
            assert!(timestamps(options).is_none());
        }
    }
}
