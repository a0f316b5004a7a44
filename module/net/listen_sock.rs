// SPDX-License-Identifier: GPL-2.0-only

//! Accessors of a listening `struct sock`.

use core::{
    marker::PhantomData,
    ptr::{
        self,
        NonNull, //
    }, //
};

use kernel::ffi::c_void;

use super::{
    bindings::{
        self,
        accf_keepalive,
        inet_connection_sock,
        inet_connection_sock_af_ops,
        sock,
        tcp_sock,
        tcp_ulp_ops, //
    },
    rcu::ReadSide, //
};

/// What `sk_max_ack_backlog` is while the module has raised it. `listen()` never sets it: it takes
/// no more than `net.core.somaxconn`, which is an `int` and not negative (`__sys_listen_socket()`).
pub(crate) const RAISED: u32 = u32::MAX;

/// A TCP socket that listens, has listened, or is about to listen.
///
/// Its fields change under locks that the module does not take. A read by a method is a
/// `READ_ONCE()`, or, where the C shim says `data_race()`, one whose result may be old.
///
/// # Invariants
///
/// `ptr` points to a `struct tcp_sock` that is in memory for `'a`: such a socket, or a new copy of
/// one.
#[derive(Clone, Copy)]
pub(crate) struct ListenSock<'a> {
    ptr: NonNull<sock>,
    _sock: PhantomData<&'a sock>,
}

impl<'a> ListenSock<'a> {
    /// Wraps the kernel's pointer.
    ///
    /// # Safety
    ///
    /// `ptr` must point to a `struct tcp_sock` that is in memory for `'a`.
    pub(crate) unsafe fn from_raw(ptr: NonNull<sock>) -> Self {
        // INVARIANT: By the contract of this function.
        Self {
            ptr,
            _sock: PhantomData,
        }
    }

    /// Returns the kernel's pointer, which is never NULL.
    pub(crate) fn as_ptr(self) -> *mut sock {
        self.ptr.as_ptr()
    }

    /// Returns `inet_csk(sk)`.
    fn csk(self) -> *mut inet_connection_sock {
        // A `struct sock` is the first member of `inet_sock`, and that of `inet_connection_sock`.
        self.as_ptr().cast()
    }

    /// Returns `sk->sk_state`.
    fn state(self) -> u32 {
        // SAFETY: The socket is in memory by the type invariants.
        u32::from(unsafe { bindings::accf_sk_state(self.as_ptr()) })
    }

    /// Returns whether the socket listens.
    pub(crate) fn is_listening(self) -> bool {
        self.state() == bindings::ACCF_TCP_LISTEN
    }

    /// Returns whether the socket listens, or is in the state from which `listen()` starts.
    pub(crate) fn may_listen(self) -> bool {
        matches!(
            self.state(),
            bindings::ACCF_TCP_CLOSE | bindings::ACCF_TCP_LISTEN
        )
    }

    /// Returns whether the socket listens now or has listened before.
    ///
    /// The socket must be locked by the caller for the answer to stay true.
    pub(crate) fn has_listened(self) -> bool {
        // SAFETY: The socket is in memory by the type invariants.
        unsafe { bindings::accf_has_listened(self.as_ptr()) }
    }

    /// Returns whether the socket carries MPTCP or SMC (RFC 8684, RFC 7609), or data of another
    /// owner. Any of them may change or copy the socket's operations.
    pub(crate) fn carries_more_than_tcp(self) -> bool {
        // SAFETY: The socket is in memory by the type invariants.
        unsafe { bindings::accf_carries_more_than_tcp(self.as_ptr()) }
    }

    /// Returns whether the socket keeps its network namespace, as all sockets of processes do.
    pub(crate) fn holds_netns(self) -> bool {
        // SAFETY: The socket is in memory by the type invariants.
        unsafe { bindings::accf_holds_netns(self.as_ptr()) }
    }

    /// Lets the socket, and what it accepts, send zero-copy again, which `TCP_ULP` has turned off.
    ///
    /// # Safety
    ///
    /// The socket must be locked by the caller in process context, and carry TCP only.
    pub(crate) unsafe fn restore_zerocopy(self) {
        // SAFETY: The socket is in memory by the type invariants, and locked by the contract of
        // this function, so that it keeps its `sk_socket`.
        unsafe { bindings::accf_restore_zerocopy(self.as_ptr()) };
    }

    /// Returns whether a connection made now would be refused (`sk_acceptq_is_full()`), or would
    /// not only since the module has raised the backlog.
    pub(crate) fn accept_queue_may_be_full(self) -> bool {
        const { assert!(RAISED.wrapping_add(1) == 0) };
        self.queued() >= self.backlog().wrapping_add(1)
    }

    /// Returns whether the module has raised the backlog.
    pub(crate) fn is_backlog_raised(self) -> bool {
        self.backlog() == RAISED
    }

    /// Returns how many connections the accept queue holds (`sk_ack_backlog`).
    pub(crate) fn queued(self) -> u32 {
        // SAFETY: The socket is in memory by the type invariants, with this field at this offset.
        unsafe {
            let queued = self
                .as_ptr()
                .byte_add(bindings::ACCF_SK_ACK_BACKLOG as usize);
            ptr::read_volatile(queued.cast::<u32>())
        }
    }

    /// Returns the backlog (`sk_max_ack_backlog`): what `listen()` was given, unless the module has
    /// raised it.
    pub(crate) fn backlog(self) -> u32 {
        // SAFETY: The socket is in memory by the type invariants, with this field at this offset.
        unsafe {
            let backlog = self
                .as_ptr()
                .byte_add(bindings::ACCF_SK_MAX_ACK_BACKLOG as usize);
            ptr::read_volatile(backlog.cast::<u32>())
        }
    }

    /// Sets the backlog, and returns what it was.
    pub(crate) fn swap_backlog(self, backlog: u32) -> u32 {
        // SAFETY: The socket is in memory by the type invariants; the exchange is atomic.
        unsafe { bindings::accf_swap_backlog(self.as_ptr(), backlog) }
    }

    /// Sets the backlog to `to` if it is `from`, and returns whether it was.
    pub(crate) fn replace_backlog(self, from: u32, to: u32) -> bool {
        // SAFETY: The socket is in memory by the type invariants; the exchange is atomic.
        unsafe { bindings::accf_replace_backlog(self.as_ptr(), from, to) }
    }

    /// Returns the longest backlog that `listen()` may set (`net.core.somaxconn`).
    pub(crate) fn somaxconn(self) -> u32 {
        // SAFETY: The socket is in memory by the type invariants, and with it its namespace.
        unsafe { bindings::accf_somaxconn(self.as_ptr()) }
    }

    /// Returns what the socket options say of keepalive probes.
    pub(crate) fn keepalive(self) -> accf_keepalive {
        // SAFETY: The socket is in memory by the type invariants, and with it its namespace.
        unsafe { bindings::accf_keepalive(self.as_ptr()) }
    }

    /// Returns how many requests count against the SYN backlog (`request_sock_queue.qlen`).
    pub(crate) fn half_open(self) -> i32 {
        // SAFETY: The socket is in memory by the type invariants.
        unsafe { bindings::accf_qlen(self.as_ptr()) }
    }

    /// Adds `n` to the requests that count against the SYN backlog.
    pub(crate) fn add_half_open(self, n: i32) {
        // SAFETY: The socket is in memory by the type invariants; the addition is atomic.
        unsafe { bindings::accf_qlen_add(self.as_ptr(), n) };
    }

    /// Returns how many requests count as young (`request_sock_queue.young`).
    pub(crate) fn young(self) -> i32 {
        // SAFETY: The socket is in memory by the type invariants.
        unsafe { bindings::accf_young(self.as_ptr()) }
    }

    /// Adds `n` to the requests that count as young.
    pub(crate) fn add_young(self, n: i32) {
        // SAFETY: The socket is in memory by the type invariants; the addition is atomic.
        unsafe { bindings::accf_young_add(self.as_ptr(), n) };
    }

    /// Returns whether `TCP_DEFER_ACCEPT` is set.
    pub(crate) fn has_defer_accept(self) -> bool {
        // SAFETY: The socket is in memory by the type invariants.
        unsafe {
            let defer = &raw const (*self.csk()).icsk_accept_queue.rskq_defer_accept;
            ptr::read_volatile(defer) != 0
        }
    }

    /// Clears `TCP_DEFER_ACCEPT`, and returns what it was, as a number of retransmissions.
    pub(crate) fn take_defer_accept(self) -> u8 {
        // SAFETY: The socket is in memory by the type invariants; the exchange is atomic.
        unsafe { bindings::accf_take_defer_accept(self.as_ptr()) }
    }

    /// Returns the next sequence number of the socket, which nothing moves while it listens.
    pub(crate) fn write_seq(self) -> u32 {
        let tp = self.as_ptr().cast::<tcp_sock>();
        // SAFETY: The socket is in memory by the type invariants, and is a TCP socket.
        unsafe { ptr::read_volatile(&raw const (*tp).write_seq) }
    }

    /// Returns `icsk->icsk_af_ops`.
    pub(crate) fn af_ops(self) -> *const inet_connection_sock_af_ops {
        // SAFETY: The socket is in memory by the type invariants.
        unsafe { ptr::read_volatile(&raw const (*self.csk()).icsk_af_ops) }
    }

    /// Sets `icsk->icsk_af_ops`.
    ///
    /// # Safety
    ///
    /// * No other CPU may write the field: the caller holds the socket's lock, destroys the
    ///   socket, or has just made it as a child.
    /// * `ops` must stay valid until a grace period has passed since they were replaced.
    pub(crate) unsafe fn set_af_ops(self, ops: *const inet_connection_sock_af_ops) {
        // SAFETY: The socket is in memory by the type invariants; readers find either value, as
        // this is a `WRITE_ONCE()`.
        unsafe { ptr::write_volatile(&raw mut (*self.csk()).icsk_af_ops, ops) };
    }

    /// Sets `icsk->icsk_ulp_ops`.
    ///
    /// # Safety
    ///
    /// No other CPU may write the field: the caller holds the socket's lock, or has just made the
    /// socket as a child. `ops` must be NULL or registered.
    pub(crate) unsafe fn set_ulp_ops(self, ops: *const tcp_ulp_ops) {
        // SAFETY: The socket is in memory by the type invariants.
        unsafe { ptr::write_volatile(&raw mut (*self.csk()).icsk_ulp_ops, ops) };
    }

    /// Returns whether the ULP of the socket is one of this module's.
    pub(crate) fn has_our_ulp(self, _rcu: &impl ReadSide) -> bool {
        // SAFETY: The socket is in memory by the type invariants. The operations of a ULP live as
        // long as its module, to which a socket with the ULP holds a reference. If the socket is
        // losing the ULP right now, `tcp_unregister_ulp()` waits for RCU readers, as `_rcu` proves
        // this one to be, before the module goes.
        unsafe { bindings::accf_sk_has_our_ulp(self.as_ptr()) }
    }

    /// Returns `icsk->icsk_ulp_data` (`rcu_dereference()`).
    pub(crate) fn ulp_data(self, _rcu: &impl ReadSide) -> *mut c_void {
        if cfg!(CONFIG_PROVE_RCU) {
            // A kernel that checks RCU usage is shown the access.
            // SAFETY: The socket is in memory by the type invariants, and `_rcu` proves the
            // read-side critical section.
            unsafe { bindings::accf_ulp_data_rcu(self.as_ptr()) }
        } else {
            // SAFETY: The socket is in memory by the type invariants. What is read through the
            // pointer depends on it, which orders the reads.
            unsafe { ptr::read_volatile(&raw const (*self.csk()).icsk_ulp_data) }
        }
    }

    /// Returns `icsk->icsk_ulp_data` without an RCU reader.
    ///
    /// # Safety
    ///
    /// No other CPU may write the field: the caller destroys the socket, or has just made it as a
    /// child.
    pub(crate) unsafe fn ulp_data_exclusive(self) -> *mut c_void {
        // SAFETY: The socket is in memory by the type invariants; no other CPU writes the field by
        // the contract of this function.
        unsafe { (*self.csk()).icsk_ulp_data }
    }

    /// Publishes `data` as `icsk->icsk_ulp_data` (`rcu_assign_pointer()`).
    ///
    /// # Safety
    ///
    /// No other CPU may write the field: the caller holds the socket's lock, destroys the socket,
    /// or has just made it as a child. `data` must be NULL or a pointer from `Arc::into_raw()` of
    /// a `Listener`.
    pub(crate) unsafe fn publish_ulp_data(self, data: *mut c_void) {
        // SAFETY: The socket is in memory by the type invariants.
        unsafe { bindings::accf_ulp_data_publish(self.as_ptr(), data) };
    }

    /// Sets `icsk->icsk_ulp_data` to NULL (`RCU_INIT_POINTER()`).
    ///
    /// # Safety
    ///
    /// No other CPU may see the socket: the caller has just made it as a child.
    pub(crate) unsafe fn clear_ulp_data(self) {
        // SAFETY: The socket is in memory by the type invariants, and the caller alone sees it, by
        // the contract of this function.
        unsafe { ptr::write_volatile(&raw mut (*self.csk()).icsk_ulp_data, ptr::null_mut()) };
    }

    /// Returns whether the caller may have this listener park more requests than the module's
    /// default (`CAP_NET_ADMIN` in the network namespace). Process context.
    pub(crate) fn may_raise_max_parked(self) -> bool {
        // SAFETY: The socket is in memory by the type invariants, and with it its namespace.
        unsafe { bindings::accf_may_set_max_parked(self.as_ptr()) }
    }

    /// Returns whether the socket is in a `SO_REUSEPORT` group.
    pub(crate) fn is_in_group(self) -> bool {
        // SAFETY: The socket is in memory by the type invariants.
        unsafe { bindings::accf_is_in_group(self.as_ptr()) }
    }

    /// Returns whether the socket has `SO_REUSEPORT` and is in no group: it may have left one.
    pub(crate) fn has_left_group(self) -> bool {
        // SAFETY: The socket is in memory by the type invariants.
        unsafe { bindings::accf_has_left_group(self.as_ptr()) }
    }

    /// Returns whether the kernel hands the requests of the socket, which has stopped, to another
    /// listener of its `SO_REUSEPORT` group.
    pub(crate) fn has_taker(self) -> bool {
        // SAFETY: The socket is in memory by the type invariants, and with it its namespace.
        unsafe { bindings::accf_has_taker(self.as_ptr()) }
    }
}
