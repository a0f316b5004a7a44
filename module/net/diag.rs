// SPDX-License-Identifier: GPL-2.0-only

//! What inet_diag tells of a listener.

use core::mem::size_of;

use kernel::{
    error::to_result,
    prelude::*,
    transmute::AsBytes, //
};

use super::{
    bindings::{
        self,
        accf_config,
        accf_stats,
        sk_buff, //
    },
    sockopt::ListenerInfo, //
};

/// How much [`put_info`] adds to a message of inet_diag.
pub(crate) fn info_size() -> usize {
    [size_of::<accf_config>(), size_of::<accf_stats>()]
        .into_iter()
        // SAFETY: computes.
        .map(|size| unsafe { bindings::accf_nla_total_size(size) })
        .sum()
}

/// Adds a listener's terms and counters to a message of inet_diag. `EMSGSIZE`: it is too long.
///
/// # Safety
///
/// `skb` is a netlink message that the caller may add to.
pub(crate) unsafe fn put_info(skb: *mut sk_buff, account: &ListenerInfo) -> Result {
    let config = accf_config::from(&account.config);
    let stats = accf_stats::from(account);
    // SAFETY: by the contract of this function.
    unsafe {
        put(skb, bindings::ACCF_ULP_INFO_CONFIG, &config)?;
        put(skb, bindings::ACCF_ULP_INFO_STATS, &stats)
    }
}

/// # Safety
///
/// As for [`put_info`].
unsafe fn put<T: AsBytes>(skb: *mut sk_buff, attribute: u32, value: &T) -> Result {
    let bytes = value.as_bytes();
    // SAFETY: the message by the contract of this function; `bytes` are as many as we say.
    to_result(unsafe {
        bindings::nla_put(
            skb,
            attribute.try_into()?,
            bytes.len().try_into()?,
            bytes.as_ptr().cast(),
        )
    })
}
