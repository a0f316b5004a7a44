// SPDX-License-Identifier: GPL-2.0-only

//! The attributes of a listener in the answers of inet_diag.

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

/// Returns how many bytes [`put_info`] adds to a message of inet_diag.
pub(crate) fn info_size() -> usize {
    [size_of::<accf_config>(), size_of::<accf_stats>()]
        .into_iter()
        // SAFETY: A computation on its argument, without preconditions.
        .map(|size| unsafe { bindings::accf_nla_total_size(size) })
        .sum()
}

/// Adds a listener's configuration and counters to a message of inet_diag.
///
/// `EMSGSIZE`: the message has no room for them.
///
/// # Safety
///
/// `skb` must be a netlink message to which the caller may add attributes.
pub(crate) unsafe fn put_info(skb: *mut sk_buff, info: &ListenerInfo) -> Result {
    let config = accf_config::from(&info.config);
    let stats = accf_stats::from(info);
    // SAFETY: By the contract of this function.
    unsafe {
        put(skb, bindings::ACCF_ULP_INFO_CONFIG, &config)?;
        put(skb, bindings::ACCF_ULP_INFO_STATS, &stats)
    }
}

/// Adds the bytes of `value` to a netlink message, as `attribute`.
///
/// # Safety
///
/// `skb` must be a netlink message to which the caller may add attributes.
unsafe fn put<T: AsBytes>(skb: *mut sk_buff, attribute: u32, value: &T) -> Result {
    let bytes = value.as_bytes();
    // SAFETY: `skb` is a netlink message, by the contract of this function, and `bytes` has the
    // length that is passed with it.
    to_result(unsafe {
        bindings::nla_put(
            skb,
            attribute.try_into()?,
            bytes.len().try_into()?,
            bytes.as_ptr().cast(),
        )
    })
}
