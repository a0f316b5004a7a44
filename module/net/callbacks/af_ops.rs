// SPDX-License-Identifier: GPL-2.0-only

//! `struct inet_connection_sock_af_ops` of a filtered listener: SYNs, ACKs and socket options.

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
            inet_connection_sock_af_ops,
            request_sock,
            sk_buff,
            sock, //
        },
        inject,
        listen_sock::ListenSock,
        listener::{
            Listener,
            Raised, //
        },
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
        Joining,
        Phase,
        SegmentKind,
        Verdict, //
    }, //
};

/// The type of `icsk_af_ops->setsockopt`.
type SetSockOpt =
    unsafe extern "C" fn(*mut sock, c_int, c_int, bindings::sockptr_t, c_uint) -> c_int;

/// The type of `icsk_af_ops->getsockopt`.
type GetSockOpt = unsafe extern "C" fn(*mut sock, c_int, c_int, *mut c_char, *mut c_int) -> c_int;

/// The type of `icsk_af_ops->conn_request`.
type ConnRequest = unsafe extern "C" fn(*mut sock, *mut sk_buff) -> c_int;

/// The type of `opt_child_init` of `icsk_af_ops->syn_recv_sock`.
type ChildInit = unsafe extern "C" fn(*mut sock, *const sock);

/// The type of `icsk_af_ops->syn_recv_sock`.
pub(crate) type SynRecvSock = unsafe extern "C" fn(
    *const sock,
    *mut sk_buff,
    *mut request_sock,
    *mut bindings::dst_entry,
    *mut request_sock,
    *mut bool,
    Option<ChildInit>,
) -> *mut sock;

/// Returns TCP's operations with those of filter `F` in place.
pub(crate) fn table<F: Filter>(
    original: &inet_connection_sock_af_ops,
) -> inet_connection_sock_af_ops {
    let mut ops = *original;
    ops.syn_recv_sock = Some(syn_recv_sock::<F>);
    ops.conn_request = Some(conn_request);
    ops.setsockopt = Some(setsockopt);
    ops.getsockopt = Some(getsockopt);
    ops
}

/// How often TCP is asked to make a connection for which the accept queue has no room, if
/// `listen()` is called each time.
const ATTEMPTS: u32 = 16;

/// The result of looking up the listener of a socket for which the kernel calls the module.
enum Lookup<'a> {
    /// A filtered listener.
    Listener(ArcBorrow<'a, Listener>),
    /// The operations that a socket has whose listener was destroyed while the kernel made the
    /// call.
    ///
    /// A callback must not call itself through them: SMC's copy of the module's operations may be
    /// left in the socket.
    Detached(&'a inet_connection_sock_af_ops),
}

impl<'a> Lookup<'a> {
    /// Looks a socket up for a segment (R1).
    ///
    /// The listener is found by the socket's data, and not by the operations that the kernel has
    /// called. Those may be a copy: `smc_listen()` makes one. (`attach()` refuses SMC's sockets,
    /// but cannot tell one that another thread is having fall back to TCP at that moment.)
    ///
    /// No barrier is needed between the kernel's read of the operations and the read of the data
    /// here. If the socket had ever listened when the filter was attached, there was a grace period
    /// between W1 and W3: an RCU reader that finds W3 began after W1. If the socket had not, no CPU
    /// could find it in the table before both were written.
    ///
    /// # Safety
    ///
    /// The kernel must have read `icsk_af_ops` of `sock` in the RCU read-side critical section that
    /// `rcu` proves, and have called one of the module's functions from there.
    unsafe fn of(sock: ListenSock<'a>, rcu: &'a impl ReadSide) -> Self {
        // SAFETY: The module's operations are only on sockets with data that `attach()` published.
        match unsafe { Listener::of(sock, rcu) } {
            Some(listener) => Self::Listener(listener),
            None => Self::detached(sock, rcu),
        }
    }

    /// Looks a socket up where the kernel may have read the operations before it became an RCU
    /// reader: for a system call (R2).
    ///
    /// # Safety
    ///
    /// The kernel must have read `icsk_af_ops` of `sock`, and have called one of the module's
    /// functions from there.
    unsafe fn after_barrier(sock: ListenSock<'a>, rcu: &'a impl ReadSide) -> Self {
        // The kernel has read W3; read W1 after that. Pairs with B1 in `attach()`.
        smp_mb(Read);
        // SAFETY: The module's operations are only on sockets with data that `attach()` published,
        // which the barrier makes visible.
        match unsafe { Listener::of(sock, rcu) } {
            Some(listener) => Self::Listener(listener),
            None => Self::detached(sock, rcu),
        }
    }

    /// Returns the operations of a socket that has no listener any more (R5).
    #[cold] // One of those that `net/mod.rs` names: together, they save 48 instructions.
    fn detached(sock: ListenSock<'a>, _rcu: &'a impl ReadSide) -> Self {
        // Reads the operations after the data; pairs with B2 in `release()`.
        smp_mb(Read);
        // SAFETY: The operations of a TCP socket are constants; or part of a listener, which is
        // dropped a grace period after it was unpublished; or a copy that SMC has made, inside a
        // `struct smc_sock`, which owns the socket and is freed a grace period after it was closed
        // (`SOCK_RCU_FREE`, set by `smc_listen()`). `_rcu` holds off both grace periods.
        Self::Detached(unsafe { &*sock.af_ops() })
    }
}

/// Stands in for `ip_setsockopt()` and `ipv6_setsockopt()` of a filtered listener. May sleep.
///
/// # Safety
///
/// * `sk` must be a filtered listener whose file the caller holds.
/// * `optval` and `optlen` must be those of `setsockopt()`.
unsafe extern "C" fn setsockopt(
    sk: *mut sock,
    level: c_int,
    optname: c_int,
    optval: bindings::sockptr_t,
    optlen: c_uint,
) -> c_int {
    let Some(listening) = NonNull::new(sk) else {
        return EINVAL.to_errno();
    };
    // SAFETY: The caller holds the file of the socket, a TCP socket.
    let listening = unsafe { ListenSock::from_raw(listening) };
    if level == SOL_ACCF {
        return from_result(|| {
            // SAFETY: TCP has called this function for this socket, whose file is held; `optval`
            // and `optlen` are those of `setsockopt()`.
            unsafe { set_option(listening, optname, optval, optlen) }.map(|()| 0)
        });
    }
    // SAFETY: TCP has called this function for this socket, whose file is held.
    match unsafe { original(listening, |ops| ops.setsockopt) } {
        // SAFETY: The arguments are those that TCP has for its own function.
        Some(original) if !ptr::fn_addr_eq(original, setsockopt as SetSockOpt) => unsafe {
            original(sk, level, optname, optval, optlen)
        },
        _ => ENOPROTOOPT.to_errno(),
    }
}

/// Sets an option of level `SOL_ACCF`.
///
/// # Safety
///
/// * TCP must have called [`setsockopt`] for `sock`, whose file it holds.
/// * `optval` and `optlen` must be those of `setsockopt()`.
unsafe fn set_option(
    sock: ListenSock<'_>,
    optname: c_int,
    optval: bindings::sockptr_t,
    optlen: c_uint,
) -> Result {
    let sockopt::Name::Config = sockopt::Name::from_number(optname)? else {
        return Err(ENOPROTOOPT);
    };
    // May sleep, so it comes before the rest.
    // SAFETY: `optval` and `optlen` are those of `setsockopt()` by the contract of this function.
    let change = unsafe { sockopt::read_config(optval, optlen) }?;

    let bh = BhGuard::new();
    let bh = bh.token();
    // SAFETY: TCP has called the module's function for this socket.
    let Lookup::Listener(listener) = (unsafe { Lookup::after_barrier(sock, &bh) }) else {
        return Err(ENOPROTOOPT);
    };
    // Others pay for requests that are parked here, with memory and with their share of the
    // namespace's limit.
    if change.config.max_parked > listener.default_max_parked() && !sock.may_raise_max_parked() {
        return Err(EPERM);
    }
    listener.set_config(&bh, change);
    Ok(())
}

/// Stands in for `ip_getsockopt()` and `ipv6_getsockopt()` of a filtered listener. May sleep.
///
/// # Safety
///
/// * `sk` must be a filtered listener whose file the caller holds.
/// * `optval` and `optlen` must be those of `getsockopt()`.
unsafe extern "C" fn getsockopt(
    sk: *mut sock,
    level: c_int,
    optname: c_int,
    optval: *mut c_char,
    optlen: *mut c_int,
) -> c_int {
    let Some(listening) = NonNull::new(sk) else {
        return EINVAL.to_errno();
    };
    // SAFETY: The caller holds the file of the socket, a TCP socket.
    let listening = unsafe { ListenSock::from_raw(listening) };
    if level == SOL_ACCF {
        return from_result(|| {
            // SAFETY: TCP has called this function for this socket, whose file is held.
            unsafe { get_option(listening, optname, optval, optlen) }.map(|()| 0)
        });
    }
    // SAFETY: TCP has called this function for this socket, whose file is held.
    match unsafe { original(listening, |ops| ops.getsockopt) } {
        // SAFETY: The arguments are those that TCP has for its own function.
        Some(original) if !ptr::fn_addr_eq(original, getsockopt as GetSockOpt) => unsafe {
            original(sk, level, optname, optval, optlen)
        },
        _ => ENOPROTOOPT.to_errno(),
    }
}

/// Gets an option of level `SOL_ACCF`. `optval` and `optlen` are pointers of user space, which are
/// checked.
///
/// # Safety
///
/// TCP must have called [`getsockopt`] for `sock`, whose file it holds.
unsafe fn get_option(
    sock: ListenSock<'_>,
    optname: c_int,
    optval: *mut c_char,
    optlen: *mut c_int,
) -> Result {
    let name = sockopt::Name::from_number(optname)?;
    let info = {
        let bh = BhGuard::new();
        let bh = bh.token();
        // SAFETY: TCP has called the module's function for this socket.
        let Lookup::Listener(listener) = (unsafe { Lookup::after_barrier(sock, &bh) }) else {
            return Err(ENOPROTOOPT);
        };
        // TCP_DEFER_ACCEPT may have been set, and no SYN has come since.
        listener.take_over_defer_accept();
        listener.info(&bh)
    };
    // May sleep, so it comes last.
    match name {
        sockopt::Name::Config => {
            sockopt::write(&bindings::accf_config::from(&info.config), optval, optlen)
        }
        sockopt::Name::Stats => sockopt::write(&bindings::accf_stats::from(&info), optval, optlen),
    }
}

/// Returns the function that `field` takes from TCP's operations of a filtered listener.
///
/// # Safety
///
/// TCP must have called one of the module's functions for `sock`, whose file it holds.
unsafe fn original<F>(
    sock: ListenSock<'_>,
    field: impl FnOnce(&inet_connection_sock_af_ops) -> Option<F>,
) -> Option<F> {
    let rcu = rcu::read_lock();
    // SAFETY: By the contract of this function.
    match unsafe { Lookup::after_barrier(sock, &rcu) } {
        Lookup::Listener(listener) => field(listener.original_ops()),
        // A socket whose file is held is not released, so this is not reached.
        Lookup::Detached(ops) => field(ops),
    }
}

/// Stands in for `tcp_v4_conn_request()` and `tcp_v6_conn_request()` of a filtered listener.
///
/// The application may set `TCP_DEFER_ACCEPT` at any time, and nothing tells the module. With it,
/// `tcp_check_req()` would drop the bare ACK before the module sees it.
///
/// # Safety
///
/// * `sk` must be a filtered listener, and `skb` a SYN for it.
/// * The caller must be `tcp_rcv_state_process()`, with bottom halves off.
unsafe extern "C" fn conn_request(sk: *mut sock, skb: *mut sk_buff) -> c_int {
    // SAFETY: The caller has turned bottom halves off, whatever the context, and turns them on
    // again after the return.
    let bh = unsafe { BhDisabled::assume() };
    // SAFETY: TCP calls this function for a socket, which is not NULL, and in memory for the call.
    let sock = unsafe { ListenSock::from_raw(NonNull::new_unchecked(sk)) };
    // SAFETY: TCP has read the operations after it turned bottom halves off.
    let original = match unsafe { Lookup::of(sock, &bh) } {
        Lookup::Listener(listener) => {
            if listener.has_defer_accept() {
                take_over_defer_accept(listener);
            }
            let original = listener.original_ops().conn_request;
            if sock.accept_queue_may_be_full() {
                // SAFETY: The arguments are those that TCP has for its own function.
                return unsafe { conn_request_if_full(&bh, listener, original, sock, skb) };
            }
            original
        }
        Lookup::Detached(ops) => ops
            .conn_request
            .filter(|&original| !ptr::fn_addr_eq(original, conn_request as ConnRequest)),
    };
    match original {
        // SAFETY: The arguments are those that TCP has for its own function.
        Some(original) => unsafe { original(sk, skb) },
        // The SYN is as good as lost.
        None => -1,
    }
}

/// Handles a SYN that finds the accept queue full.
///
/// # Safety
///
/// TCP must have called [`conn_request`] with `sock` and `skb`, and `listener` be that of `sock`.
#[cold] // Most accept queues are never full.
unsafe fn conn_request_if_full(
    bh: &BhDisabled<'_>,
    listener: ArcBorrow<'_, Listener>,
    original: Option<ConnRequest>,
    sock: ListenSock<'_>,
    skb: *mut sk_buff,
) -> c_int {
    let Some(original) = original else {
        return -1;
    };
    let raised = listener.raise_backlog(bh, Joining::Syn);
    if raised.is_none() && sock.is_backlog_raised() {
        // TCP would drop the SYN, if another CPU had not raised the backlog just now.
        return 0;
    }
    // SAFETY: The arguments are those that TCP has for its own function.
    let result = unsafe { original(sock.as_ptr(), skb) };
    if let Some(raised) = raised {
        raised.lower(bh, None, false);
    }
    result
}

/// Takes `TCP_DEFER_ACCEPT` over, out of the way of SYNs to listeners that do not set it.
#[cold] // One of those that `net/mod.rs` names: together, they save 48 instructions.
fn take_over_defer_accept(listener: ArcBorrow<'_, Listener>) {
    listener.take_over_defer_accept();
}

/// Stands in for `tcp_v4_syn_recv_sock()` and `tcp_v6_syn_recv_sock()` of a filtered listener.
///
/// If it returns NULL, `tcp_check_req()` marks the request as acked and drops the segment, unless
/// `tcp_abort_on_overflow` is set.
///
/// # Safety
///
/// * The caller must be TCP, which passes arguments that suit its own function.
/// * `req_unhash` must be NULL, or a request that was looked up in the table, has a listener, and
///   to which the caller holds a reference; TCP has checked the segment for it
///   (`tcp_check_req()`), and bottom halves are off.
pub(crate) unsafe extern "C" fn syn_recv_sock<F: Filter>(
    sk: *const sock,
    skb: *mut sk_buff,
    req: *mut request_sock,
    dst: *mut bindings::dst_entry,
    req_unhash: *mut request_sock,
    own_req: *mut bool,
    opt_child_init: Option<ChildInit>,
) -> *mut sock {
    let raw = RawArgs {
        sk,
        skb,
        req,
        dst,
        req_unhash,
        own_req,
        opt_child_init,
    };
    // INVARIANT: The arguments are TCP's, and this is the call.
    let args = SynRecvSockArgs(&raw);
    // SAFETY: TCP calls this function for a socket, which is not NULL, and in memory for the call.
    let sock = unsafe { ListenSock::from_raw(NonNull::new_unchecked(sk.cast_mut())) };
    // SAFETY: `tcp_v4_rcv()` and `tcp_v6_rcv()` pull the whole TCP header into linear memory and
    // fill the control block before they pass a segment on: to `tcp_check_req()`, or to a listener,
    // which finds a cookie in it or answers it by Fast Open, be that at once or from the backlog.
    // No function on the way here takes either away. TCP keeps the segment during this call.
    let segment = unsafe { TcpSegment::from_raw(skb) };
    let Some(request) = NonNull::new(req_unhash) else {
        // SAFETY: TCP has made the request `req` for this segment, and looked none up.
        return unsafe { on_ack_without_request::<F>(args, sock, segment) };
    };
    // SAFETY: Bottom halves are off by the contract of this function: a request that was looked up
    // comes from `tcp_v4_rcv()` or `tcp_v6_rcv()`, which are called so.
    let bh = unsafe { BhDisabled::assume() };
    // SAFETY: TCP has read the operations in this RCU read-side critical section.
    let listener = match unsafe { Lookup::of(sock, &bh) } {
        Lookup::Listener(listener) => listener,
        // SAFETY: The operations are those of the socket of the arguments.
        Lookup::Detached(ops) => return unsafe { args.call_current::<F>(ops) },
    };
    // SAFETY: The request has a listener, and TCP holds a reference to it.
    let request = unsafe { RequestSock::from_raw(request) };
    let kind = segment.kind(request.client_isn());
    match F::verdict(kind) {
        Verdict::Ready => {
            // SAFETY: The listener's socket and the request are those of the arguments.
            if kind == SegmentKind::Fin && unsafe { on_fin(&bh, args.0, listener, request) } {
                return args.drop_segment().as_ptr();
            }
            // SAFETY: The socket, the request and the segment are those of the arguments.
            unsafe { on_data(&bh, args, sock, listener, request, segment, kind) }.as_ptr()
        }
        // SAFETY: The listener's socket, the request and the segment are those of the arguments.
        Verdict::Wait => unsafe { on_bare_ack(&bh, args, listener, request, segment, kind) },
    }
}

/// The arguments of `icsk_af_ops->syn_recv_sock`, as TCP passes them.
struct RawArgs {
    sk: *const sock,
    skb: *mut sk_buff,
    req: *mut request_sock,
    dst: *mut bindings::dst_entry,
    req_unhash: *mut request_sock,
    own_req: *mut bool,
    opt_child_init: Option<ChildInit>,
}

/// The arguments of `icsk_af_ops->syn_recv_sock`, for one call. (By reference, which saves 13
/// instructions of a request: `cargo xtask bench holding`.)
///
/// # Invariants
///
/// The arguments are those that TCP has called [`syn_recv_sock`] with, for its own function. The
/// call is not over, and no other function was called with them, or only one that has made no
/// child and had no route to put.
struct SynRecvSockArgs<'a>(&'a RawArgs);

impl SynRecvSockArgs<'_> {
    /// Calls `function`, and returns the child that it makes.
    ///
    /// # Safety
    ///
    /// `function` must be a `syn_recv_sock` for the socket of the arguments, and not the module's.
    unsafe fn call(self, function: SynRecvSock) -> Child {
        let own_req = self.0.own_req;
        // SAFETY: `function` may be called with what TCP has for its own, by the contract of this
        // function and the type invariants. `dst` is consumed with `self`.
        let child = unsafe {
            function(
                self.0.sk,
                self.0.skb,
                self.0.req,
                self.0.dst,
                self.0.req_unhash,
                self.0.own_req,
                self.0.opt_child_init,
            )
        };
        let child = NonNull::new(child);
        // SAFETY: `own_req` points to a variable of TCP, which waits for the return of this call,
        // by the type invariants. A `syn_recv_sock` that makes a child writes it.
        let owns_request = child.is_some() && unsafe { *own_req };
        Child {
            child,
            owns_request,
        }
    }

    /// Has TCP make a connection at `listener`.
    ///
    /// # Safety
    ///
    /// `listener` must be that of the arguments' socket.
    unsafe fn call_original(self, listener: ArcBorrow<'_, Listener>) -> Child {
        let Some(original) = listener.original_ops().syn_recv_sock else {
            return self.drop_segment();
        };
        // SAFETY: TCP's own function is for this socket.
        let made = unsafe { self.call(original) };
        if let Some(child) = made.child {
            // A child may have been copied while the filter was being attached (R3).
            // SAFETY: A new child is locked, and a copy of the listener's socket.
            unsafe { listener.restore_child_af_ops(ListenSock::from_raw(child)) };
        }
        made
    }

    /// Calls `ops`, the operations that the socket has now, as its listener was destroyed while the
    /// kernel called the module.
    ///
    /// # Safety
    ///
    /// `ops` must be the operations of the arguments' socket.
    #[cold] // One of those that `net/mod.rs` names: together, they save 48 instructions.
    unsafe fn call_current<F: Filter>(self, ops: &inet_connection_sock_af_ops) -> *mut sock {
        let ours: SynRecvSock = syn_recv_sock::<F>;
        let made = match ops.syn_recv_sock {
            // SAFETY: The function is that of the socket now, and not the module's.
            Some(current) if !ptr::fn_addr_eq(current, ours) => unsafe { self.call(current) },
            _ => self.drop_segment(),
        };
        made.as_ptr()
    }

    /// Returns the same arguments for another call, if the first one makes no child. `None` if
    /// there is a route, which the first call consumes.
    fn without_route(&self) -> Option<Self> {
        // INVARIANT: They are TCP's, whose call is not over. A call that makes no child and has no
        // route to put leaves everything as it was, but for counters.
        self.0.dst.is_null().then_some(Self(self.0))
    }

    /// Makes no connection.
    fn drop_segment(self) -> Child {
        if !self.0.dst.is_null() {
            // SAFETY: A callee that makes no child must put the route. It is consumed with `self`.
            unsafe { bindings::dst_release(self.0.dst) };
        }
        Child {
            child: None,
            owns_request: false,
        }
    }
}

/// What a call of `syn_recv_sock` has made.
#[derive(Clone, Copy)]
struct Child {
    /// The child, locked.
    child: Option<NonNull<sock>>,
    /// Whether the call has made a child, and has taken the request out of the table for it.
    owns_request: bool,
}

impl Child {
    /// Returns what TCP expects.
    fn as_ptr(&self) -> *mut sock {
        self.child.map_or(ptr::null_mut(), NonNull::as_ptr)
    }
}

/// Handles a segment that the server is to see, of a request that is in the table, or was a moment
/// ago.
///
/// # Safety
///
/// `sock` must be the arguments' socket, `listener` that of it, `request` their `req_unhash`, and
/// `segment` their segment, of this `kind`.
#[inline(always)] // Saves 39 instructions of a request (`cargo xtask bench holding`).
unsafe fn on_data(
    bh: &BhDisabled<'_>,
    args: SynRecvSockArgs<'_>,
    sock: ListenSock<'_>,
    listener: ArcBorrow<'_, Listener>,
    request: RequestSock<'_>,
    segment: TcpSegment<'_>,
    kind: policy::SegmentKind,
) -> Child {
    if sock.accept_queue_may_be_full() {
        // SAFETY: By the contract of this function.
        return unsafe { on_data_if_full(bh, args, listener, request, segment, kind) };
    }
    let raw = args.0;
    // SAFETY: `listener` is that of the arguments' socket by the contract of this function.
    let made = unsafe { args.call_original(listener) };
    if made.child.is_none() {
        // SAFETY: The call was for these, by the contract of this function, and made no child.
        return unsafe { on_data_if_refused(bh, raw, listener, request, segment, kind) };
    }
    // SAFETY: The call was for these, by the contract of this function.
    unsafe { complete(bh, made, listener, request, segment, kind) };
    made
}

/// Handles a segment of which TCP has made no connection. If its request is parked, TCP is asked
/// once more: the accept queue may have been full for a moment.
///
/// That it is not full now says nothing: `listen()` may have set a larger backlog since.
///
/// # Safety
///
/// As for [`on_data`], for the arguments `raw`, with which TCP's function was called once. It has
/// made no child.
#[cold] // Most accept queues are never full.
unsafe fn on_data_if_refused(
    bh: &BhDisabled<'_>,
    raw: &RawArgs,
    listener: ArcBorrow<'_, Listener>,
    request: RequestSock<'_>,
    segment: TcpSegment<'_>,
    kind: policy::SegmentKind,
) -> Child {
    if !raw.dst.is_null() || !request.has_ops_override() {
        return Child {
            child: None,
            owns_request: false,
        };
    }
    // INVARIANT: They are TCP's, whose call is not over. The only call so far has made no child,
    // and had no route to put.
    let args = SynRecvSockArgs(raw);
    // SAFETY: By the contract of this function.
    unsafe { on_data_if_full(bh, args, listener, request, segment, kind) }
}

/// Handles a segment that the server is to see, and that finds the accept queue full ([`on_data`]).
///
/// TCP would drop the segment. But a client that is parked was acknowledged, and would have been
/// accepted before on a plain listener.
///
/// # Safety
///
/// See [`on_data`].
#[cold] // Most accept queues are never full.
unsafe fn on_data_if_full(
    bh: &BhDisabled<'_>,
    mut args: SynRecvSockArgs<'_>,
    listener: ArcBorrow<'_, Listener>,
    request: RequestSock<'_>,
    segment: TcpSegment<'_>,
    kind: policy::SegmentKind,
) -> Child {
    // If it is parked or taken out of the queue by another CPU just now, either is right.
    let parking = resolve_parking_listener(bh, listener, &request)
        .and_then(|listener| Some((listener, listener.parked_at(bh, &request)?)));
    let joining = parking.map_or(Joining::Newcomer, |(_, at)| Joining::Parked(at));
    let mut attempts = ATTEMPTS;
    loop {
        let raised = listener.raise_backlog(bh, joining);
        let was_full = raised.as_ref().is_some_and(Raised::was_full);
        let is_refused = raised.is_none();
        attempts -= 1;
        let again = args.without_route().filter(|_| attempts > 0);
        // SAFETY: `listener` is that of the arguments' socket by the contract of this function.
        let made = unsafe { args.call_original(listener) };
        let is_late = was_full && made.owns_request && parking.is_some();
        let child = made.child.map(|child| {
            // SAFETY: A new child is locked, and a TCP socket.
            unsafe { ListenSock::from_raw(child) }
        });
        let was_raised = raised.is_none_or(|raised| raised.lower(bh, child, is_late));
        match again {
            // `listen()` was called just now, and TCP has compared with what that has set.
            Some(again) if made.child.is_none() && !was_raised => {
                args = again;
                continue;
            }
            _ => {}
        }
        if let Some((parking_listener, _)) = parking {
            if is_late {
                parking_listener.count_late(bh);
            } else if is_refused && made.child.is_none() {
                parking_listener.count_overflow(bh);
            }
        }
        // SAFETY: The call was for these, by the contract of this function.
        unsafe { complete(bh, made, listener, request, segment, kind) };
        return made;
    }
}

/// Ends the parking of `request`, if it was parked and a connection was `made` of it.
///
/// # Safety
///
/// `made` must be what TCP's function has returned for `listener`, `request` and `segment`, which
/// is of this `kind`.
#[inline(always)] // See `on_data()`.
unsafe fn complete(
    bh: &BhDisabled<'_>,
    made: Child,
    listener: ArcBorrow<'_, Listener>,
    request: RequestSock<'_>,
    segment: TcpSegment<'_>,
    kind: policy::SegmentKind,
) {
    // The request is out of the table. Another CPU may have begun to park it before, and then it is
    // acked (B6 in `was_acked()`, with B5). A connection that was never parked takes no lock of the
    // module.
    if made.owns_request && (request.was_acked() || request.has_ops_override()) {
        let parking_listener = if listener.is_listener_of(&request) {
            Some(listener)
        } else {
            Listener::parking_listener(&request, bh)
        };
        if let Some(listener) = parking_listener {
            // SAFETY: The call has taken the request out of the table, and made the connection, by
            // the contract of this function.
            let completed = unsafe { listener.complete(bh, request, kind) };
            if let (Some(child), Some(completed)) = (made.child, completed) {
                // SAFETY: The child was just made of the request, and TCP has it locked until this
                // function's caller has handed it the segment. Bottom halves are off.
                unsafe { completed.apply_to(child, &request, &segment) };
            }
        }
    }
}

/// Handles the end of a client's stream before the first byte of it. Returns whether the client was
/// reset; otherwise the segment is one for the server.
///
/// A request that is not for the filter (`exemption()`, MPTCP's, of another listener) is not reset.
///
/// # Safety
///
/// `listener` must be that of the arguments' socket, and `request` their `req_unhash`.
#[cold] // Few clients close without a byte.
unsafe fn on_fin(
    bh: &BhDisabled<'_>,
    raw: &RawArgs,
    listener: ArcBorrow<'_, Listener>,
    request: RequestSock<'_>,
) -> bool {
    // SAFETY: The listener and the request are alive.
    let flags = unsafe { bindings::accf_req_flags(raw.sk, request.as_ptr()) };
    if exemption(flags).is_some()
        || !listener.is_listener_of(&request)
        || request.is_fast_open()
        || request.is_mptcp()
        // SAFETY: The request is the arguments' `req_unhash`, to which TCP holds a reference during
        // this call, without a lock.
        || !unsafe { listener.drop_closed(bh, &request) }
    {
        return false;
    }
    // SAFETY: The arguments are TCP's, by the type invariants, and the call is not over.
    unsafe { inject::reset_segment(&request, raw.sk, raw.skb, bh) };
    true
}

/// Handles an ACK with nothing for the server, of a request that is in the table, or was a moment
/// ago.
///
/// # Safety
///
/// `listener` must be that of the arguments' socket, `request` their `req_unhash`, and `segment`
/// their segment, of this `kind`.
#[inline(always)] // See `Listener::park()`.
unsafe fn on_bare_ack(
    bh: &BhDisabled<'_>,
    args: SynRecvSockArgs<'_>,
    listener: ArcBorrow<'_, Listener>,
    request: RequestSock<'_>,
    segment: TcpSegment<'_>,
    kind: policy::SegmentKind,
) -> *mut sock {
    let sk = args.0.sk;
    let phase = || {
        // The bit is read once. If the request is not acked now, no CPU had begun to park it, and
        // `park()` finds out which CPU was faster.
        // SAFETY: The listener and the request are alive.
        let flags = unsafe { bindings::accf_req_flags(sk, request.as_ptr()) };
        if flags != 0 {
            phase_of_acked_or_exempt(bh, listener, request, flags)
        } else if !listener.is_listener_of(&request) || request.is_fast_open() || request.is_mptcp()
        {
            Phase::Exempt(Bypass::Other)
        } else {
            Phase::Unparked
        }
    };

    let cause = match policy::on_segment(Verdict::Wait, phase) {
        Action::Park => {
            // SAFETY: The request is the arguments' `req_unhash`, to which TCP holds a reference
            // during this call.
            if unsafe { listener.park(bh, request, segment) } {
                return args.drop_segment().as_ptr();
            }
            None
        }
        Action::Hold => {
            if let Some(listener) = resolve_parking_listener(bh, listener, &request) {
                listener.update_last_ack(bh, request, segment);
            }
            return args.drop_segment().as_ptr();
        }
        Action::Admit => None,
        Action::Bypass(cause) => Some(cause),
    };
    // SAFETY: By the contract of this function.
    let made = unsafe { on_late_ack(bh, args, listener, request, segment, kind) };
    if let (true, Some(cause)) = (made.owns_request, cause) {
        listener.count_bypass(bh, cause);
    }
    made.as_ptr()
}

/// Handles a bare ACK that makes a connection ([`on_data`]).
///
/// # Safety
///
/// See [`on_data`].
#[cold] // Most bare ACKs are parked.
unsafe fn on_late_ack(
    bh: &BhDisabled<'_>,
    args: SynRecvSockArgs<'_>,
    listener: ArcBorrow<'_, Listener>,
    request: RequestSock<'_>,
    segment: TcpSegment<'_>,
    kind: policy::SegmentKind,
) -> Child {
    // SAFETY: `listener` is that of the arguments' socket by the contract of this function.
    let made = unsafe { args.call_original(listener) };
    // SAFETY: The call was for these, by the contract of this function.
    unsafe { complete(bh, made, listener, request, segment, kind) };
    made
}

/// Returns the phase of a request for which `flags`, from `accf_req_flags()`, are not 0.
#[cold] // One of those that `net/mod.rs` names: together, they save 48 instructions.
fn phase_of_acked_or_exempt(
    bh: &BhDisabled<'_>,
    listener: ArcBorrow<'_, Listener>,
    request: RequestSock<'_>,
    flags: u32,
) -> Phase {
    let exempt = exemption(flags);
    if flags & bindings::ACCF_IS_ACKED == 0 {
        return exempt.map_or(Phase::Unparked, Phase::Exempt);
    }
    match resolve_parking_listener(bh, listener, &request)
        .and_then(|listener| listener.phase_of(bh, &request))
    {
        Some(phase) if exempt.is_none() => phase,
        // The listener parks no more: let the parked request go.
        Some(_) => Phase::Expired,
        // A request that was acked before was parked and fell back, as it could not be made a
        // connection; or it could not even be parked. It is not parked again, and was counted.
        None => Phase::Expired,
    }
}

/// Returns the parking listener of `request`, for a segment of it that has come to `listener`.
///
/// The two are the same, unless the parking listener has stopped, and TCP has chosen `listener` of
/// its group to make the connection. Returns `None` if the request cannot be parked: it has not the
/// ops override, or its listener has no filter (any more).
fn resolve_parking_listener<'a>(
    bh: &'a BhDisabled<'_>,
    listener: ArcBorrow<'a, Listener>,
    request: &RequestSock<'a>,
) -> Option<ArcBorrow<'a, Listener>> {
    if listener.is_listener_of(request) {
        Some(listener)
    } else if request.has_ops_override() {
        Listener::parking_listener(request, bh)
    } else {
        None
    }
}

/// Handles an ACK of which no request is in the table: TCP has just made one from a cookie, or for
/// Fast Open. It has no listener.
///
/// # Safety
///
/// `sock` must be the arguments' socket, and `segment` their segment. Their `req` must be the
/// request that TCP has made, and `req_unhash` NULL.
#[cold] // One of those that `net/mod.rs` names: together, they save 48 instructions.
unsafe fn on_ack_without_request<F: Filter>(
    args: SynRecvSockArgs<'_>,
    sock: ListenSock<'_>,
    segment: TcpSegment<'_>,
) -> *mut sock {
    // Bottom halves are on where the cookie comes from the backlog of a listener that was being
    // made (`__release_sock()`).
    with_bh_off(|bh| {
        // TCP may have read the operations before bottom halves were turned off.
        // SAFETY: TCP has called the module's function for this socket.
        let listener = match unsafe { Lookup::after_barrier(sock, bh) } {
            Lookup::Listener(listener) => listener,
            // SAFETY: The operations are those of the socket of the arguments.
            Lookup::Detached(ops) => return unsafe { args.call_current::<F>(ops) },
        };
        let cause = if segment.is_syn() {
            Some(Bypass::FastOpen)
        } else {
            // SAFETY: TCP has just made the request, for this segment.
            let client_isn = unsafe { reqsk::client_isn(args.0.req) };
            let verdict = F::verdict(segment.kind(client_isn));
            match policy::on_segment(verdict, || Phase::Exempt(Bypass::Syncookie)) {
                Action::Bypass(cause) => Some(cause),
                _ => None,
            }
        };
        // SAFETY: The listener is that of the arguments' socket.
        let made = unsafe { args.call_original(listener) };
        if let (Some(_), Some(cause)) = (made.child, cause) {
            listener.count_bypass(bh, cause);
        }
        made.as_ptr()
    })
}

/// Returns why TCP alone must handle all requests of a listener, if it must, by what
/// `accf_req_flags()` returned.
///
/// With `tcp_abort_on_overflow`, NULL from [`syn_recv_sock`] would mean a reset. With signatures,
/// the ACK that is rebuilt at the deadline could not be signed.
fn exemption(flags: u32) -> Option<Bypass> {
    if flags & bindings::ACCF_ABORTS_ON_OVERFLOW != 0 {
        Some(Bypass::AbortOnOverflow)
    } else if flags & bindings::ACCF_IS_SIGNED != 0 {
        Some(Bypass::Signed)
    } else {
        None
    }
}
