// SPDX-License-Identifier: MIT OR Apache-2.0
//! Listeners of all kinds, at random.

use accf_kit::control::{settings, Config, OnClose, OnTimeout};
use accf_kit::endpoint::Family;

/// Returns a policy, at random.
pub(crate) fn any_policy(rng: &mut fastrand::Rng) -> OnTimeout {
    match rng.u8(..3) {
        0 => OnTimeout::Accept,
        1 => OnTimeout::Reset,
        _ => OnTimeout::Drop,
    }
}

/// Returns what happens to a client that closes without a byte, at random.
pub(crate) fn any_on_close(rng: &mut fastrand::Rng) -> OnClose {
    match rng.bool() {
        true => OnClose::Reset,
        false => OnClose::Accept,
    }
}

/// Returns a family, at random.
pub(crate) fn any_family(rng: &mut fastrand::Rng) -> Family {
    match rng.u8(..3) {
        0 => Family::V4,
        1 => Family::V6,
        _ => Family::Mapped,
    }
}

/// Settings, at random.
pub(crate) fn any_settings(rng: &mut fastrand::Rng) -> Config {
    let timeout_ms = match rng.u8(..10) {
        0 => 0,
        1..=4 => rng.u32(1..100),
        _ => rng.u32(100..3_000),
    };
    let max_parked = if rng.bool() { rng.u32(1..30) } else { 0 };
    settings(timeout_ms, max_parked, any_policy(rng))
}
