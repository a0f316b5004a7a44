// SPDX-License-Identifier: GPL-2.0-only

//! Every function that the kernel calls, and nothing else is `extern "C"`.
//!
//! | function | is | called | context |
//! | --- | --- | --- | --- |
//! | [`init`] | `tcp_ulp_ops.init` | by `setsockopt(TCP_ULP)` | process, socket locked, may sleep |
//! | [`clone`] | `tcp_ulp_ops.clone` | when a child is made | softirq |
//! | [`release`] | `tcp_ulp_ops.release` | when the socket is destroyed | process, or softirq; may not sleep |
//! | [`get_info`], [`get_info_size`] | `tcp_ulp_ops.get_info` … | by inet_diag | process, bottom halves on or off; may not sleep |
//! | [`setsockopt`], [`getsockopt`] | `icsk_af_ops->setsockopt` … | for each level but `IPPROTO_TCP` | process, may sleep |
//! | [`conn_request`] | `icsk_af_ops->conn_request` | for each SYN | bottom halves off, RCU |
//! | [`syn_recv_sock`] | `icsk_af_ops->syn_recv_sock` | for each ACK of a request | softirq, RCU, listener not locked |
//! | [`send_synack`] | `af_specific->send_synack` | for parked requests | softirq, RCU |
//! | [`send_ack`] | `rsk_ops->send_ack` | for parked requests | softirq, RCU |
//! | [`destructor`] | `rsk_ops->destructor` | when a parked request dies | process or softirq, may not sleep |
//! | [`peer_restores_clones`] | `accf_reuseport_peers()` | for each other member of a listener's group | as the caller; RCU |

use core::ptr::{self, NonNull};

use kernel::{
    error::from_result,
    ffi::{c_char, c_int, c_uint},
    prelude::*,
    sync::{
        barrier::{smp_mb, Read, Write},
        rcu, Arc, ArcBorrow,
    },
};

use crate::policy::{self, Action, Bypass, Filter, Phase, SynAck, Trigger, Verdict};

use super::{
    bindings::{self, request_sock, sk_buff, sock},
    context::{with_bh_off, BhDisabled, BhGuard},
    listener::Listener,
    options::{self, SOL_ACCF},
    overlay::RequestOpsOverride,
    rcu::{defer_drop, ReadSide},
    request::{self, RequestSock},
    segment::TcpSegment,
    ulp::Registration,
};

/// `inet_csk(sk)`.
fn csk(sk: *mut sock) -> *mut bindings::inet_connection_sock {
    // A `struct sock` is the first member of `inet_sock`, and that of `inet_connection_sock`.
    sk.cast()
}

/// Attaches filter `F` to a socket that listens, or is about to.
///
/// # Safety
///
/// `sk` must be a locked TCP socket without a ULP, in process context; this is the `init` of a registered [`Registration`].
pub(crate) unsafe extern "C" fn init<F: Filter>(sk: *mut sock) -> c_int {
    from_result(|| {
        // SAFETY: by the contract of this function.
        unsafe { attach::<F>(sk) }.map(|()| 0)
    })
}

/// # Safety
///
/// As for [`init`].
unsafe fn attach<F: Filter>(sk: *mut sock) -> Result {
    let sk = NonNull::new(sk).ok_or(EINVAL)?;
    // SAFETY: the kernel calls the `init` of this very registration.
    let registration = unsafe { Registration::by_name(F::NAME) }.ok_or(ENOENT)?;
    let raw = sk.as_ptr();

    // SAFETY: the socket is a TCP socket and locked. The kernel's operations, which `icsk_af_ops` points to where there
    // is no ULP, are constant.
    let (state, carries_more, original) = unsafe {
        (
            u32::from(bindings::accf_sk_state(raw)),
            bindings::accf_carries_more_than_tcp(raw),
            &*(*csk(raw)).icsk_af_ops,
        )
    };
    let may_listen = matches!(state, bindings::ACCF_TCP_CLOSE | bindings::ACCF_TCP_LISTEN);
    if !may_listen || carries_more {
        return Err(EOPNOTSUPP);
    }

    let mut ops = *original;
    ops.syn_recv_sock = Some(syn_recv_sock::<F>);
    ops.conn_request = Some(conn_request);
    ops.setsockopt = Some(setsockopt);
    ops.getsockopt = Some(getsockopt);
    let defaults = registration.defaults();
    // SAFETY: the socket stays in memory until it has been destroyed; `release()`, which calls `close()`, is part of
    // that.
    let listener = unsafe { Listener::new(sk, defaults, ops, original) }?;
    listener.as_arc_borrow().take_over_defer_accept();
    // Or before: there may be CPUs that have found it then, and a request of that time.
    // SAFETY: the socket is locked.
    let has_listened = unsafe { bindings::accf_has_listened(raw) };
    // SAFETY: the socket is locked. From the last write on, softirqs on other CPUs call `syn_recv_sock()` and must find
    // the data (`listener_of()`), and make children by copying the socket. Whoever copies our operations must copy the ULP too, or
    // `clone()` is not called; so it is set before, to what the kernel sets it to after we return, and copies that began earlier
    // are waited for. For who asks without being a reader under RCU there is a barrier (`listener_after_barrier()`).
    unsafe {
        bindings::accf_ulp_data_publish(raw, Arc::into_raw(listener.clone()).cast_mut().cast());
        ptr::write_volatile(&raw mut (*csk(raw)).icsk_ulp_ops, registration.as_ptr());
        if has_listened {
            rcu::synchronize_rcu();
        }
        smp_mb(Write);
        ptr::write_volatile(&raw mut (*csk(raw)).icsk_af_ops, listener.ops());
    }
    if has_listened {
        // Another CPU may still be in the kernel's own function, making a connection that nobody will complete: of a request that
        // must not be parked meanwhile.
        rcu::synchronize_rcu();
    }
    with_bh_off(|bh| listener.open(bh));
    Ok(())
}

/// Makes a child a plain socket: it inherits nothing.
///
/// # Safety
///
/// `child` must be a new copy of a listener that has, or had, our ULP, not visible to anybody else.
pub(crate) unsafe extern "C" fn clone(
    req: *const request_sock,
    child: *mut sock,
    _priority: bindings::gfp_t,
) {
    // SAFETY: the copy has the data of its listener, which keeps it for as long as our caller is a reader under RCU, or owns the
    // listener's lock, which who releases it has, too (`tcp_get_cookie_sock()`, called from `__release_sock()`).
    let listener = unsafe { (*csk(child)).icsk_ulp_data.cast::<Listener>().as_ref() };
    // SAFETY: nobody else sees the child.
    if listener.is_some_and(|listener| !unsafe { restore_child_af_ops(child, listener) }) {
        // The kernel makes this connection without asking us: its listener has lost our operations, as sockets do that
        // connect to an IPv4-mapped address, and has listened again since. Nobody would complete the request, which is still
        // in the table.
        // SAFETY: the kernel makes the child of this request, to which it holds a reference.
        unsafe { fall_back(req) };
    }
    // SAFETY: as above. The kernel took no module reference for the child, and must not put one.
    unsafe {
        (*csk(child)).icsk_ulp_ops = ptr::null();
        (*csk(child)).icsk_ulp_data = ptr::null_mut();
    }
}

/// Makes a request that may be parked the kernel's again.
///
/// # Safety
///
/// `req` must be alive, and not destroyed by the caller.
#[cold]
unsafe fn fall_back(req: *const request_sock) {
    let has_listener = |req: &NonNull<request_sock>| {
        // SAFETY: by the contract of this function. A cookie's request has no listener.
        let listener = unsafe { request::listener_sock(req.as_ptr()) };
        !listener.is_null()
    };
    if let Some(req) = NonNull::new(req.cast_mut()).filter(has_listener) {
        // SAFETY: alive by the contract of this function, with a listener.
        let request = unsafe { RequestSock::from_raw(req) };
        with_bh_off(|bh| {
            if let Some(parking_listener) = Listener::parking_listener(&request, bh) {
                parking_listener.fall_back(bh, &request);
            }
        });
    }
}

/// Are the operations of `sk`, which is `listener`'s or a copy of it, still ours?
///
/// # Safety
///
/// `sk` must be alive.
pub(crate) unsafe fn has_accf_af_ops(sk: *mut sock, listener: &Listener) -> bool {
    // SAFETY: by the contract of this function. The read is a `READ_ONCE()`.
    let ops = unsafe { ptr::read_volatile(&raw const (*csk(sk)).icsk_af_ops) };
    ptr::eq(ops, listener.ops())
}

/// Gives `child` the kernel's operations if it has ours. Had it?
///
/// # Safety
///
/// `child` must be a socket that nobody else changes.
unsafe fn restore_child_af_ops(child: *mut sock, listener: &Listener) -> bool {
    // SAFETY: by the contract of this function. A v4-mapped child has operations of its own, which stay.
    unsafe {
        let has_accf_af_ops = has_accf_af_ops(child, listener);
        if has_accf_af_ops {
            (*csk(child)).icsk_af_ops = listener.original_ops();
        }
        has_accf_af_ops
    }
}

/// Detaches from a listener that is destroyed.
///
/// # Safety
///
/// `sk` must be a socket that [`init`] attached to, in the course of its destruction (`tcp_cleanup_ulp()`).
pub(crate) unsafe extern "C" fn release(sk: *mut sock) {
    // Not off where a socket that has connected since dies of a segment from its backlog (`__release_sock()`).
    let bh = BhGuard::new();
    let raw = csk(sk);
    // SAFETY: `init()` put this reference there, and only we take it out.
    let listener = unsafe { Arc::from_raw((*raw).icsk_ulp_data.cast::<Listener>()) };

    // Only now may anybody no longer find the listener: who does not, takes it that no request is parked there.
    listener.close(&bh.token());

    // SAFETY: nobody else changes these; readers find either value (the barrier pairs with those in
    // `ops_without_listener()` and `destructor()`). A socket that has connected since may have got other operations, which stay.
    unsafe {
        if ptr::eq((*raw).icsk_af_ops, listener.ops()) {
            ptr::write_volatile(&raw mut (*raw).icsk_af_ops, listener.original_ops());
        }
        smp_mb(Write);
        bindings::accf_ulp_data_publish(sk, ptr::null_mut());
    }
    // SAFETY: this is the only place, and a socket is released once.
    unsafe { defer_drop(listener) };
}

/// The filtered listener of a socket for which the kernel calls one of our `icsk_af_ops`; or the operations that it has
/// instead, if it was destroyed while the kernel called us. They may still be ours, in a socket that is not a listener's any
/// more: callers must not call themselves.
///
/// Not by the operations themselves: SMC copies those of its sockets, ours among them.
///
/// That the kernel has read our operations and we find the data takes no barrier. If the socket had ever listened when the filter
/// was attached, a grace period has passed between the two writes (`attach()`): who sees the second and is a reader under RCU,
/// has begun after the first. If it had not, nobody could find it in the table before both were written.
///
/// # Safety
///
/// `sk` must be the socket that the kernel calls for, for a segment, and alive while the guard is held; the kernel must have read
/// its `icsk_af_ops` in the same RCU read-side critical section.
#[inline]
unsafe fn listener_of<'a>(
    sk: *const sock,
    rcu: &'a impl ReadSide,
) -> Result<ArcBorrow<'a, Listener>, &'a bindings::inet_connection_sock_af_ops> {
    // SAFETY: the socket is alive, and our operations are only on sockets with our data.
    unsafe { Listener::of(sk, rcu) }.ok_or_else(|| {
        // SAFETY: by the contract of this function.
        unsafe { ops_without_listener(sk, rcu) }
    })
}

/// The same where the kernel may have read the operations before it became a reader under RCU: for a system call.
///
/// # Safety
///
/// `sk` must be the socket that the kernel calls for, and alive while the guard is held.
unsafe fn listener_after_barrier<'a>(
    sk: *const sock,
    rcu: &'a impl ReadSide,
) -> Result<ArcBorrow<'a, Listener>, &'a bindings::inet_connection_sock_af_ops> {
    // The kernel has read our `icsk_af_ops`; read the data after that. Pairs with the barrier in `attach()`.
    smp_mb(Read);
    // SAFETY: the socket is alive, and our operations are only on sockets with our data.
    unsafe { Listener::of(sk, rcu) }.ok_or_else(|| {
        // SAFETY: by the contract of this function.
        unsafe { ops_without_listener(sk, rcu) }
    })
}

/// What a socket has instead of our operations, whose listener has just been looked for in vain.
///
/// # Safety
///
/// `sk` must be alive while the guard is held.
#[cold]
unsafe fn ops_without_listener<'a>(
    sk: *const sock,
    _rcu: &'a impl ReadSide,
) -> &'a bindings::inet_connection_sock_af_ops {
    // Read the operations after the data: pairs with the barrier in `release()`.
    smp_mb(Read);
    // SAFETY: the socket is alive; its operations are valid under RCU.
    unsafe { &*ptr::read_volatile(&raw const (*csk(sk.cast_mut())).icsk_af_ops) }
}

/// Writes a listener's configuration and counters into an answer of inet_diag, inside `INET_DIAG_ULP_INFO`.
///
/// # Safety
///
/// For the kernel only: `sk` has our ULP, and `skb` is a netlink message with an open attribute.
pub(crate) unsafe extern "C" fn get_info(
    sk: *mut sock,
    skb: *mut sk_buff,
    _net_admin: bool,
) -> c_int {
    let bh = BhGuard::new();
    let bh = bh.token();
    // SAFETY: inet_diag holds the socket, and it has, or had, our ULP.
    let Some(listener) = (unsafe { Listener::of(sk, &bh) }) else {
        return 0;
    };
    // SAFETY: by the contract of this function.
    if !unsafe { bindings::accf_diag_has_room(skb, options::info_size()) } {
        return 0;
    }
    let account = listener.account(&bh);
    // SAFETY: by the contract of this function.
    from_result(|| unsafe { options::put_info(skb, &account) }.map(|()| 0))
}

/// How much [`get_info`] writes at most, in bytes.
///
/// # Safety
///
/// None: looks at nothing.
pub(crate) unsafe extern "C" fn get_info_size(_sk: *const sock, _net_admin: bool) -> usize {
    options::info_size()
}

/// Stands for `ip_setsockopt()` and `ipv6_setsockopt()` of a filtered listener.
///
/// # Safety
///
/// For the kernel only; the arguments are those of its own functions.
pub(crate) unsafe extern "C" fn setsockopt(
    sk: *mut sock,
    level: c_int,
    optname: c_int,
    optval: bindings::sockptr_t,
    optlen: c_uint,
) -> c_int {
    if level == SOL_ACCF {
        // SAFETY: by the contract of this function.
        return from_result(|| unsafe { set_option(sk, optname, optval, optlen) }.map(|()| 0));
    }
    // SAFETY: the kernel calls our function for this socket, whose file is held.
    match unsafe { original_ops(sk) }.setsockopt {
        // SAFETY: the arguments are passed on. The kernel's operations are constant.
        Some(original) if !ptr::fn_addr_eq(original, setsockopt as SetSockOpt) => unsafe {
            original(sk, level, optname, optval, optlen)
        },
        _ => ENOPROTOOPT.to_errno(),
    }
}

/// The type of `icsk_af_ops->setsockopt`.
type SetSockOpt =
    unsafe extern "C" fn(*mut sock, c_int, c_int, bindings::sockptr_t, c_uint) -> c_int;

/// # Safety
///
/// As for [`setsockopt`].
unsafe fn set_option(
    sk: *mut sock,
    optname: c_int,
    optval: bindings::sockptr_t,
    optlen: c_uint,
) -> Result {
    let options::Name::Config = options::Name::from_number(optname)? else {
        return Err(ENOPROTOOPT);
    };
    // SAFETY: by the contract of this function. May sleep, so it comes before the rest.
    let config = unsafe { options::read_config(optval, optlen) }?;

    let bh = BhGuard::new();
    let bh = bh.token();
    // SAFETY: the kernel calls our function for this socket.
    let listener = unsafe { listener_after_barrier(sk, &bh) }.map_err(|_| ENOPROTOOPT)?;
    // Others pay for what is kept here, with memory and with their share of the namespace's limit.
    if config.max_parked > listener.default_max_parked() {
        // SAFETY: the socket is alive, and with it its namespace.
        if !unsafe { bindings::accf_may_set_max_parked(sk) } {
            return Err(EPERM);
        }
    }
    listener.set_config(&bh, config);
    Ok(())
}

/// Stands for `ip_getsockopt()` and `ipv6_getsockopt()` of a filtered listener.
///
/// # Safety
///
/// For the kernel only; the arguments are those of its own functions.
pub(crate) unsafe extern "C" fn getsockopt(
    sk: *mut sock,
    level: c_int,
    optname: c_int,
    optval: *mut c_char,
    optlen: *mut c_int,
) -> c_int {
    if level == SOL_ACCF {
        // SAFETY: by the contract of this function.
        return from_result(|| unsafe { get_option(sk, optname, optval, optlen) }.map(|()| 0));
    }
    // SAFETY: the kernel calls our function for this socket, whose file is held.
    match unsafe { original_ops(sk) }.getsockopt {
        // SAFETY: the arguments are passed on. The kernel's operations are constant.
        Some(original) if !ptr::fn_addr_eq(original, getsockopt as GetSockOpt) => unsafe {
            original(sk, level, optname, optval, optlen)
        },
        _ => ENOPROTOOPT.to_errno(),
    }
}

/// The type of `icsk_af_ops->getsockopt`.
type GetSockOpt = unsafe extern "C" fn(*mut sock, c_int, c_int, *mut c_char, *mut c_int) -> c_int;

/// # Safety
///
/// As for [`getsockopt`].
unsafe fn get_option(
    sk: *mut sock,
    optname: c_int,
    optval: *mut c_char,
    optlen: *mut c_int,
) -> Result {
    let name = options::Name::from_number(optname)?;
    let account = {
        let bh = BhGuard::new();
        let bh = bh.token();
        // SAFETY: the kernel calls our function for this socket.
        let listener = unsafe { listener_after_barrier(sk, &bh) }.map_err(|_| ENOPROTOOPT)?;
        // What was set, and no SYN has come since.
        listener.take_over_defer_accept();
        listener.account(&bh)
    };
    // May sleep, so it comes last.
    match name {
        options::Name::Config => options::write(
            &bindings::accf_config::from(&account.config),
            optval,
            optlen,
        ),
        options::Name::Stats => {
            options::write(&bindings::accf_stats::from(&account), optval, optlen)
        }
    }
}

/// The kernel's operations of a socket for which the kernel calls ours.
///
/// # Safety
///
/// `sk` must be the socket that the kernel calls for, and held by its file.
unsafe fn original_ops(sk: *mut sock) -> &'static bindings::inet_connection_sock_af_ops {
    let rcu = rcu::read_lock();
    // SAFETY: by the contract of this function.
    match unsafe { listener_after_barrier(sk, &rcu) } {
        Ok(listener) => listener.original_ops(),
        // SAFETY: a socket whose file is held is not released, so it still is a filtered listener, and this is not
        // reached; were it, the socket would have the kernel's operations back, which are constant.
        Err(ops) => unsafe { &*ptr::from_ref(ops) },
    }
}

/// Stands for `tcp_v4_conn_request()` and `tcp_v6_conn_request()` of a filtered listener.
///
/// The application may set `TCP_DEFER_ACCEPT` whenever it likes, and nobody tells us. With it, `tcp_check_req()` would
/// drop the bare ACK before we see it.
///
/// # Safety
///
/// For the kernel only; the arguments are those of its own functions.
pub(crate) unsafe extern "C" fn conn_request(sk: *mut sock, skb: *mut sk_buff) -> c_int {
    // SAFETY: its only caller, `tcp_rcv_state_process()`, has turned them off, whatever the context, and turns them on again after
    // our return.
    let bh = unsafe { BhDisabled::assume() };
    // SAFETY: the kernel calls our function for this socket, having read the operations after it turned them off.
    match unsafe { listener_of(sk, &bh) } {
        Ok(listener) if !listener.has_defer_accept() => {
            // SAFETY: the arguments are passed on.
            unsafe { call_conn_request(listener.original_ops().conn_request, sk, skb) }
        }
        // SAFETY: the arguments are passed on.
        _ => unsafe { conn_request_slow(sk, skb) },
    }
}

/// The same, whatever there is to do before. A function of its own, so that nothing is saved in the other for it.
///
/// # Safety
///
/// As for [`conn_request`].
#[cold]
#[inline(never)]
unsafe extern "C" fn conn_request_slow(sk: *mut sock, skb: *mut sk_buff) -> c_int {
    // SAFETY: as in `conn_request()`.
    let bh = unsafe { BhDisabled::assume() };
    // SAFETY: as in `conn_request()`.
    let original = match unsafe { listener_of(sk, &bh) } {
        Ok(listener) => {
            listener.take_over_defer_accept();
            listener.original_ops().conn_request
        }
        Err(ops) => ops
            .conn_request
            .filter(|&original| !ptr::fn_addr_eq(original, conn_request as ConnRequest)),
    };
    // SAFETY: the arguments are passed on.
    unsafe { call_conn_request(original, sk, skb) }
}

/// Has the kernel's own function, if there is one, deal with a SYN.
///
/// # Safety
///
/// The arguments are those of [`conn_request`], and `original` is not that.
#[inline(always)]
unsafe fn call_conn_request(
    original: Option<ConnRequest>,
    sk: *mut sock,
    skb: *mut sk_buff,
) -> c_int {
    match original {
        // SAFETY: by the contract of this function.
        Some(original) => unsafe { original(sk, skb) },
        // The SYN is as good as lost.
        None => -1,
    }
}

/// The type of `icsk_af_ops->conn_request`.
type ConnRequest = unsafe extern "C" fn(*mut sock, *mut sk_buff) -> c_int;

/// The type of `icsk_af_ops->syn_recv_sock`.
pub(crate) type SynRecvSock = unsafe extern "C" fn(
    *const sock,
    *mut sk_buff,
    *mut request_sock,
    *mut bindings::dst_entry,
    *mut request_sock,
    *mut bool,
    Option<unsafe extern "C" fn(*mut sock, *const sock)>,
) -> *mut sock;

/// Stands for `tcp_v4_syn_recv_sock()` and `tcp_v6_syn_recv_sock()` of a filtered listener.
///
/// NULL makes `tcp_check_req()` mark the request acked and drop the segment, unless `tcp_abort_on_overflow` is set.
///
/// # Safety
///
/// For the kernel only; the arguments are those of its own functions.
pub(crate) unsafe extern "C" fn syn_recv_sock<F: Filter>(
    sk: *const sock,
    skb: *mut sk_buff,
    req: *mut request_sock,
    dst: *mut bindings::dst_entry,
    req_unhash: *mut request_sock,
    own_req: *mut bool,
    opt_child_init: Option<unsafe extern "C" fn(*mut sock, *const sock)>,
) -> *mut sock {
    let Some(request) = NonNull::new(req_unhash) else {
        // SAFETY: the arguments are passed on.
        return unsafe {
            on_ack_without_request::<F>(sk, skb, req, dst, req_unhash, own_req, opt_child_init)
        };
    };
    // SAFETY: the kernel has checked the segment for this request, which it holds a reference to.
    let kind = unsafe { TcpSegment::from_raw(skb).kind(request::client_isn(request.as_ptr())) };
    // Functions of their own, with the same arguments, so that nothing is saved here for one that the other needs.
    // SAFETY: the arguments are passed on; it is in the table, or was a moment ago.
    unsafe {
        match F::verdict(kind) {
            Verdict::Ready => on_data::<F>(sk, skb, req, dst, req_unhash, own_req, opt_child_init),
            Verdict::Wait => {
                on_bare_ack::<F>(sk, skb, req, dst, req_unhash, own_req, opt_child_init)
            }
        }
    }
}

/// What `icsk_af_ops->syn_recv_sock` is called with.
#[derive(Clone, Copy)]
struct Ack {
    sk: *const sock,
    skb: *mut sk_buff,
    req: *mut request_sock,
    dst: *mut bindings::dst_entry,
    req_unhash: *mut request_sock,
    own_req: *mut bool,
    opt_child_init: Option<unsafe extern "C" fn(*mut sock, *const sock)>,
}

impl Ack {
    /// Has `function` make a connection.
    ///
    /// # Safety
    ///
    /// For the kernel's own functions only; the arguments are the kernel's, and are passed on once.
    #[inline]
    unsafe fn give_to(self, function: SynRecvSock) -> *mut sock {
        // SAFETY: by the contract of this function.
        unsafe {
            function(
                self.sk,
                self.skb,
                self.req,
                self.dst,
                self.req_unhash,
                self.own_req,
                self.opt_child_init,
            )
        }
    }

    /// Has the kernel's own function make a connection.
    ///
    /// # Safety
    ///
    /// `listener` is that of the arguments, which are the kernel's, and are passed on once.
    #[inline]
    unsafe fn call_original(self, listener: ArcBorrow<'_, Listener>) -> *mut sock {
        let Some(original) = listener.original_ops().syn_recv_sock else {
            return ptr::null_mut();
        };
        // SAFETY: by the contract of this function.
        let child = unsafe { self.give_to(original) };
        if !child.is_null() {
            // A child that was copied while the filter was being attached.
            // SAFETY: a new child is locked.
            unsafe { restore_child_af_ops(child, &listener) };
        }
        child
    }

    /// Has the `ops` make a connection that the socket has now: its listener was destroyed while the kernel called `ours`.
    ///
    /// # Safety
    ///
    /// The arguments are the kernel's, and are passed on once.
    #[inline(always)]
    unsafe fn call_current(
        self,
        ops: &bindings::inet_connection_sock_af_ops,
        ours: SynRecvSock,
    ) -> *mut sock {
        match ops.syn_recv_sock {
            // SAFETY: by the contract of this function; and it is not ours.
            Some(original) if !ptr::fn_addr_eq(original, ours) => unsafe { self.give_to(original) },
            // SAFETY: by the contract of this function.
            _ => unsafe { self.drop_segment() },
        }
    }

    /// Makes no connection.
    ///
    /// # Safety
    ///
    /// The arguments are the kernel's, and are not passed on.
    #[inline]
    unsafe fn drop_segment(self) -> *mut sock {
        if !self.dst.is_null() {
            // SAFETY: whoever makes no child must put the route.
            unsafe { bindings::dst_release(self.dst) };
        }
        ptr::null_mut()
    }
}

/// Deals with a segment that has something for the server, of a request that is in the table, or was a moment ago.
///
/// # Safety
///
/// As for [`syn_recv_sock`], called for a request that was looked up.
#[inline(never)]
unsafe extern "C" fn on_data<F: Filter>(
    sk: *const sock,
    skb: *mut sk_buff,
    req: *mut request_sock,
    dst: *mut bindings::dst_entry,
    req_unhash: *mut request_sock,
    own_req: *mut bool,
    opt_child_init: Option<unsafe extern "C" fn(*mut sock, *const sock)>,
) -> *mut sock {
    let ack = Ack {
        sk,
        skb,
        req,
        dst,
        req_unhash,
        own_req,
        opt_child_init,
    };
    // SAFETY: they are off: a request that was looked up comes from `tcp_v4_rcv()` or `tcp_v6_rcv()`, which are called so.
    let bh = unsafe { BhDisabled::assume() };
    // SAFETY: the kernel calls our function for this socket, having read the operations just now.
    let listener = match unsafe { listener_of(sk, &bh) } {
        Ok(listener) => listener,
        // SAFETY: as told by our caller.
        Err(ops) => return unsafe { ack.call_current(ops, syn_recv_sock::<F>) },
    };
    // SAFETY: the kernel holds a reference to the request, which has a listener, as it was in the table; our caller has seen that
    // it is not NULL; and the kernel has checked the segment for it.
    let (request, segment) = unsafe {
        (
            RequestSock::from_raw(NonNull::new_unchecked(req_unhash)),
            TcpSegment::from_raw(skb),
        )
    };
    // SAFETY: as told by our caller.
    unsafe { connect(&bh, ack, listener, request, segment) }
}

/// Has the kernel make a connection of `request`, and settles it if it waited.
///
/// # Safety
///
/// As for [`syn_recv_sock`], to which `ack` was given; `listener` is the one of its arguments.
#[inline(always)]
unsafe fn connect(
    bh: &BhDisabled<'_>,
    ack: Ack,
    listener: ArcBorrow<'_, Listener>,
    request: RequestSock<'_>,
    segment: TcpSegment<'_>,
) -> *mut sock {
    let kind = segment.kind(request.client_isn());
    // SAFETY: as told by our caller.
    let child = unsafe { ack.call_original(listener) };
    // SAFETY: the kernel's own function wrote it if it made a child.
    if !child.is_null() && unsafe { *ack.own_req } {
        // It is out of the table; another CPU may have begun to park it before, and then it is acked. The barrier in here pairs
        // with that in `RequestSock::set_acked()`. A connection that never waited takes no lock of ours.
        if request.was_acked() || request.has_ops_override() {
            let parking_listener = if listener.is_listener_of(&request) {
                Some(listener)
            } else {
                Listener::parking_listener(&request, bh)
            };
            if let Some(parking_listener) = parking_listener {
                // SAFETY: we own the request, and have made the connection.
                unsafe { parking_listener.complete(bh, request, kind) };
            }
        }
    }
    child
}

/// Deals with an ACK that has nothing for the server, of a request that is in the table, or was a moment ago.
///
/// # Safety
///
/// As for [`syn_recv_sock`], called for a request that was looked up.
#[inline(never)]
unsafe extern "C" fn on_bare_ack<F: Filter>(
    sk: *const sock,
    skb: *mut sk_buff,
    req: *mut request_sock,
    dst: *mut bindings::dst_entry,
    req_unhash: *mut request_sock,
    own_req: *mut bool,
    opt_child_init: Option<unsafe extern "C" fn(*mut sock, *const sock)>,
) -> *mut sock {
    let ack = Ack {
        sk,
        skb,
        req,
        dst,
        req_unhash,
        own_req,
        opt_child_init,
    };
    // SAFETY: they are off: a request that was looked up comes from `tcp_v4_rcv()` or `tcp_v6_rcv()`, which are called so.
    let bh = unsafe { BhDisabled::assume() };
    let bh = &bh;
    // SAFETY: the kernel calls our function for this socket, having read the operations just now.
    let listener = match unsafe { listener_of(sk, bh) } {
        Ok(listener) => listener,
        // SAFETY: as told by our caller.
        Err(ops) => return unsafe { ack.call_current(ops, syn_recv_sock::<F>) },
    };
    // SAFETY: the kernel holds a reference to the request, which has a listener, as it was in the table; our caller has seen that
    // it is not NULL; and the kernel has checked the segment for it.
    let (request, segment) = unsafe {
        (
            RequestSock::from_raw(NonNull::new_unchecked(req_unhash)),
            TcpSegment::from_raw(skb),
        )
    };

    let phase = || {
        // Read once: where it is not acked now, nobody had begun to park it, and `park()` finds out who was faster.
        // SAFETY: the listener is alive, and so is the request.
        let flags = unsafe { bindings::accf_req_flags(sk, req_unhash) };
        if flags != 0 {
            phase_of_acked_or_exempt(bh, listener, &request, flags)
        } else if !listener.is_listener_of(&request) || request.is_fast_open() || request.is_mptcp()
        {
            Phase::Exempt(Bypass::Other)
        } else {
            Phase::Unparked
        }
    };

    let cause = match policy::on_segment(Verdict::Wait, phase) {
        Action::Park => {
            if listener.park(bh, request, segment) {
                // SAFETY: as told by our caller.
                return unsafe { ack.drop_segment() };
            }
            None
        }
        Action::Hold => {
            if let Some(parking_listener) = resolve_parking_listener(bh, listener, &request) {
                parking_listener.update_last_ack(bh, &request, &segment);
            }
            // SAFETY: as told by our caller.
            return unsafe { ack.drop_segment() };
        }
        Action::Admit => None,
        Action::Bypass(cause) => Some(cause),
    };
    // SAFETY: as told by our caller.
    let child = unsafe { on_data::<F>(sk, skb, req, dst, req_unhash, own_req, opt_child_init) };
    if let Some(cause) = cause {
        // SAFETY: the kernel's own function wrote it if it made a child.
        if !child.is_null() && unsafe { *own_req } {
            listener.bypassed(bh, cause);
        }
    }
    child
}

/// Where a request stands of which, or of whose listener, there are `facts` (`accf_req_flags()`).
#[cold]
fn phase_of_acked_or_exempt(
    bh: &BhDisabled<'_>,
    listener: ArcBorrow<'_, Listener>,
    request: &RequestSock<'_>,
    flags: u32,
) -> Phase {
    let exempt = exemption(flags);
    if flags & bindings::ACCF_IS_ACKED == 0 {
        return exempt.map_or(Phase::Unparked, Phase::Exempt);
    }
    match resolve_parking_listener(bh, listener, request)
        .and_then(|listener| listener.phase_of(bh, request))
    {
        Some(phase) if exempt.is_none() => phase,
        // Nobody is held back any more; let go of who was.
        Some(_) => Phase::Expired,
        // One that was acked before was parked, and given back because it could not be made a connection; or it could not
        // even be parked. It gets no second chance to be late, and has been counted.
        None => Phase::Expired,
    }
}

/// The home of `request`, of which a segment has come to `listener`: that, unless its own has stopped and this one of its group is
/// to take over.
fn resolve_parking_listener<'a>(
    bh: &'a BhDisabled<'_>,
    listener: ArcBorrow<'a, Listener>,
    request: &RequestSock<'_>,
) -> Option<ArcBorrow<'a, Listener>> {
    if listener.is_listener_of(request) {
        Some(listener)
    } else if request.has_ops_override() {
        Listener::parking_listener(request, bh)
    } else {
        None
    }
}

/// Deals with an ACK of which no request is in the table: it was made from a cookie, or for Fast Open, and has no listener.
///
/// # Safety
///
/// As for [`syn_recv_sock`], called for a request that was not looked up.
#[cold]
#[inline(never)]
unsafe extern "C" fn on_ack_without_request<F: Filter>(
    sk: *const sock,
    skb: *mut sk_buff,
    req: *mut request_sock,
    dst: *mut bindings::dst_entry,
    req_unhash: *mut request_sock,
    own_req: *mut bool,
    opt_child_init: Option<unsafe extern "C" fn(*mut sock, *const sock)>,
) -> *mut sock {
    let ack = Ack {
        sk,
        skb,
        req,
        dst,
        req_unhash,
        own_req,
        opt_child_init,
    };
    // They are off, but where the cookie comes from the backlog of a listener that was being made (`__release_sock()`).
    with_bh_off(|bh| {
        // The kernel may have read the operations when they were not off yet.
        // SAFETY: the kernel calls our function for this socket, which its backlog belongs to.
        let listener = match unsafe { listener_after_barrier(sk, bh) } {
            Ok(listener) => listener,
            // SAFETY: as told by our caller.
            Err(ops) => return unsafe { ack.call_current(ops, syn_recv_sock::<F>) },
        };
        // SAFETY: the kernel has checked the segment, for the request that it has just made.
        let segment = unsafe { TcpSegment::from_raw(skb) };
        let cause = if segment.is_syn() {
            Some(Bypass::FastOpen)
        } else {
            // SAFETY: the kernel has just made the request, for this segment.
            let client_isn = unsafe { request::client_isn(req) };
            let verdict = F::verdict(segment.kind(client_isn));
            match policy::on_segment(verdict, || Phase::Exempt(Bypass::Syncookie)) {
                Action::Bypass(cause) => Some(cause),
                _ => None,
            }
        };
        // SAFETY: as told by our caller.
        let child = unsafe { ack.call_original(listener) };
        if let (false, Some(cause)) = (child.is_null(), cause) {
            listener.bypassed(bh, cause);
        }
        child
    })
}

/// Why the kernel must deal with all requests of a listener alone, if it must, by what `accf_req_flags()` says.
///
/// With `tcp_abort_on_overflow`, NULL would mean a reset. Who is asked again at the deadline cannot sign.
fn exemption(flags: u32) -> Option<Bypass> {
    if flags & bindings::ACCF_ABORTS_ON_OVERFLOW != 0 {
        Some(Bypass::AbortOnOverflow)
    } else if flags & bindings::ACCF_IS_SIGNED != 0 {
        Some(Bypass::Signed)
    } else {
        None
    }
}

/// Stands for `tcp_v4_send_synack()` and `tcp_v6_send_synack()` of a parked request.
///
/// Anything but 0 means that nothing was sent.
///
/// # Safety
///
/// For the kernel only; the arguments are those of its own functions.
pub(crate) unsafe extern "C" fn send_synack(
    sk: *const sock,
    dst: *mut bindings::dst_entry,
    fl: *mut bindings::flowi,
    req: *mut request_sock,
    foc: *mut bindings::tcp_fastopen_cookie,
    synack_type: bindings::tcp_synack_type,
    syn_skb: *mut sk_buff,
) -> c_int {
    let Some(req_ptr) = NonNull::new(req) else {
        return EINVAL.to_errno();
    };
    // SAFETY: the kernel holds a reference to the request, or is making it from a copy; it has a listener.
    let request = unsafe { RequestSock::from_raw(req_ptr) };
    let Some(ops_override) = RequestOpsOverride::of(&request) else {
        return EINVAL.to_errno();
    };

    let bh = BhGuard::new();
    let bh = bh.token();
    let parking_listener = Listener::parking_listener(&request, &bh);
    // A copy for another listener, which the timer's handler has just made, is not our business.
    request.restore_ops_of_new_clone(parking_listener.map(|listener| listener.tag()));

    // `tcp_rtx_synack()` has two callers: the timer's handler, during which the timer is not pending, and
    // `tcp_check_req()` for a SYN that came again. Should that happen during the handler, it will come yet again.
    let trigger = if request.timer_is_pending() {
        Trigger::ClientSyn
    } else {
        Trigger::Timer
    };
    let parking_listener = parking_listener.filter(|listener| listener.has_parked(&request));
    if let (Some(parking_listener), SynAck::Suppress) =
        (parking_listener, policy::on_synack(trigger))
    {
        // SAFETY: the timer's handler is calling.
        if unsafe { parking_listener.on_synack_timer(&bh, &request) } {
            return EAGAIN.to_errno();
        }
    }
    let Some(original) = ops_override.original_tcp().send_synack else {
        return EINVAL.to_errno();
    };
    // SAFETY: the arguments are passed on.
    let sent = unsafe { original(sk, dst, fl, req, foc, synack_type, syn_skb) };
    if parking_listener.is_some() && sent == 0 {
        // It went out, but must not count as a retransmission, nor may the kernel set the request's timer anew: the client
        // has acknowledged the SYN-ACK before, and the request stays parked.
        return EAGAIN.to_errno();
    }
    sent
}

/// Stands for `tcp_v4_reqsk_send_ack()` and `tcp_v6_reqsk_send_ack()` of a parked request: the answer to a keepalive probe,
/// and to whatever else lies outside of the window.
///
/// `tcp_check_req()` refuses segments that echo a later timestamp than that of our last SYN-ACK. That of this answer is
/// later, and the client echoes it with everything that it sends afterwards.
///
/// # Safety
///
/// For the kernel only; the arguments are those of its own functions.
pub(crate) unsafe extern "C" fn send_ack(
    sk: *const sock,
    skb: *mut sk_buff,
    req: *mut request_sock,
) {
    let Some(req_ptr) = NonNull::new(req) else {
        return;
    };
    // SAFETY: the kernel holds a reference to the request, which has a listener.
    let request = unsafe { RequestSock::from_raw(req_ptr) };
    if let Some(original) =
        RequestOpsOverride::of(&request).and_then(|ops_override| ops_override.original().send_ack)
    {
        // SAFETY: the arguments are passed on.
        unsafe { original(sk, skb, req) };
    }
    request.note_tsval_sent();
}

/// Stands for the destructor of a parked request, or of a copy of one.
///
/// # Safety
///
/// For the kernel only: the last reference to `req` is gone.
pub(crate) unsafe extern "C" fn destructor(req: *mut request_sock) {
    // Until the end, so that the module stays (`ulp.rs`) even if the kernel's destructor has to wait for a lock, which it may on
    // PREEMPT_RT: RCU tasks does not wait for whoever does.
    let _rcu = rcu::read_lock();
    let Some(req_ptr) = NonNull::new(req) else {
        return;
    };
    // SAFETY: the request is being destroyed by our caller, and keeps its reference to the listener until we return.
    let request = unsafe { RequestSock::from_raw(req_ptr) };
    let original = RequestOpsOverride::of(&request)
        .and_then(|ops_override| ops_override.original().destructor);

    // A dying request is parked or not: nobody else can change that but the lock's holder, and it takes no reference.
    let bh = BhGuard::new();
    let bh = bh.token();
    // A connection was made of it by another listener of its group, without our knowing? If that one is plain, a copy of the
    // request sits in its accept queue, and this is the destructor of the copy too.
    let pin_for_clone = || {
        // SAFETY: it is parked, and we are its destructor.
        let parked = unsafe { request.parked() };
        if request.may_have_lost_clone(parked) {
            pin_module();
        }
    };
    // It is such a copy itself. Where its listener stops, the kernel may just have copied it once more, for anybody
    // (`inet_csk_listen_stop()`).
    let pin_for_clone_of_clone = || {
        if !request.is_listener_active() {
            pin_module();
        }
    };
    match Listener::parking_listener(&request, &bh) {
        Some(parking_listener)
            if parking_listener.has_parked(&request) || request.is_orphaned() =>
        {
            pin_for_clone();
            // SAFETY: we are its destructor.
            unsafe { parking_listener.on_destroyed(&bh, &request) };
        }
        Some(_) => pin_for_clone_of_clone(),
        None => {
            // Read the mark after the data: pairs with the barrier in `release()`.
            smp_mb(Read);
            if request.is_orphaned() {
                pin_for_clone();
                // The listener was closed after the last reference to this was gone, and has left it to us, with what it kept
                // (`RequestSock::hand_over_to_destructor()`).
                // SAFETY: we are its destructor, and the listener that had it in a list is gone.
                drop(unsafe { Arc::from_raw(request.restore_ops()) });
            } else {
                pin_for_clone_of_clone();
            }
        }
    }
    if let Some(original) = original {
        // SAFETY: passed on.
        unsafe { original(req) };
    }
}

/// Is the ULP of a socket one of ours?
pub(crate) fn has_accf_ulp(sk: *const sock) -> bool {
    // SAFETY: callers show a socket that is alive. A ULP's operations live as long as its module, to which a socket with the
    // ULP has a reference; that this one loses it just now, RCU or RCU tasks would have to be over first
    // (`tcp_unregister_ulp()`).
    let ops = unsafe { ptr::read_volatile(&raw const (*csk(sk.cast_mut())).icsk_ulp_ops) };
    // SAFETY: as above.
    let hook = unsafe { ops.as_ref() }.and_then(|ops| ops.release);
    hook.is_some_and(|hook| ptr::fn_addr_eq(hook, release as unsafe extern "C" fn(*mut sock)))
}

/// Who else is in the group of `listener` (`ACCF_IN_GROUP` …), now that a request of it has left the table. Any context.
pub(crate) fn reuseport_peers(listener: *const sock) -> u32 {
    // SAFETY: callers have a request of the listener, or are closing it.
    unsafe { bindings::accf_reuseport_peers(listener, Some(peer_restores_clones)) }
}

/// Does a listener keep the module until its accept queue is empty, and have we seen to it that no request that the kernel moves
/// there, to the queue or to the table, keeps wearing our operations?
///
/// So it is once it has our ULP, which it keeps until then, and makes all its connections by [`syn_recv_sock`], which undresses
/// requests before they are copied; what their timers copy sheds the operations in [`send_synack`], if one is sent
/// ([`Listener::restores_clones`]). What comes out of the accept queue of a plain listener that stops is minded there
/// ([`destructor`]).
///
/// # Safety
///
/// For `accf_reuseport_peers()` only: `sk` is a TCP socket that is alive while our caller is a reader under RCU.
unsafe extern "C" fn peer_restores_clones(sk: *const sock) -> bool {
    has_accf_ulp(sk)
        && with_bh_off(|bh| {
            // SAFETY: alive by the contract of this function; a socket with our ULP has the data of ours.
            let listener = unsafe { Listener::of(sk, bh) };
            listener.is_some_and(|listener| {
                // SAFETY: as above.
                listener.restores_clones() && unsafe { has_accf_af_ops(sk.cast_mut(), &listener) }
            })
        })
}

/// Keeps the module for good: something that we cannot find again may point into it.
///
/// While somebody else holds it: a listener with a filter, as a rule the one that is being closed; or, where the kernel copies a
/// copy, whoever kept it for the first one. Who calls when the module is going already comes too late.
pub(crate) fn pin_module() {
    // SAFETY: the module is alive while its code runs on behalf of a listener or a request.
    unsafe { bindings::accf_pin_module() };
}
