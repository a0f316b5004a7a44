// SPDX-License-Identifier: GPL-2.0-only

//! `struct inet_connection_sock_af_ops`.

use core::ptr::{
    self,
    NonNull, //
};

use kernel::{
    error::from_result,
    ffi::{
        c_char,
        c_int,
        c_uint, //
    },
    prelude::*,
    sync::{
        barrier::{
            smp_mb,
            Read, //
        },
        rcu,
        ArcBorrow, //
    }, //
};

use crate::{
    net::{
        bh::{
            with_bh_off,
            BhDisabled,
            BhGuard, //
        },
        bindings::{
            self,
            request_sock,
            sk_buff,
            sock, //
        },
        listen_sock::csk,
        listener::Listener,
        rcu::ReadSide,
        reqsk::{
            self,
            RequestSock, //
        },
        sockopt::{
            self,
            SOL_ACCF, //
        },
        tcp_segment::TcpSegment, //
    },
    policy::{
        self,
        Action,
        Bypass,
        Filter,
        Phase,
        Verdict, //
    }, //
};

use super::ulp::restore_child_af_ops;

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
    let sockopt::Name::Config = sockopt::Name::from_number(optname)? else {
        return Err(ENOPROTOOPT);
    };
    // SAFETY: by the contract of this function. May sleep, so it comes before the rest.
    let config = unsafe { sockopt::read_config(optval, optlen) }?;

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
    let name = sockopt::Name::from_number(optname)?;
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
        sockopt::Name::Config => sockopt::write(
            &bindings::accf_config::from(&account.config),
            optval,
            optlen,
        ),
        sockopt::Name::Stats => {
            sockopt::write(&bindings::accf_stats::from(&account), optval, optlen)
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
    let kind = unsafe { TcpSegment::from_raw(skb).kind(reqsk::client_isn(request.as_ptr())) };
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
            let client_isn = unsafe { reqsk::client_isn(req) };
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
