// SPDX-License-Identifier: GPL-2.0-only

//! Safe handles on what `fabricate.c` fabricates, and safe calls of the functions of `net/` that
//! otherwise only the kernel calls.

use core::{
    ffi::CStr,
    ptr::{
        self,
        NonNull, //
    }, //
};

use kernel::{
    prelude::*,
    sync::atomic::{
        ordering::Relaxed,
        Atomic, //
    }, //
};

use crate::{
    net::{
        self,
        bh::{
            BhDisabled,
            BhGuard, //
        },
        bindings,
        callbacks::af_ops,
        listen_sock::ListenSock,
        listener::Listener,
        park_queue::ParkQueue,
        registration::Registration,
        reqsk::RequestSock,
        sockopt::Defaults,
        tcp_segment::{
            self,
            TcpSegment, //
        }, //
    },
    policy::{
        Config,
        Filter,
        OnClose,
        OnTimeout,
        Parking,
        Phase,
        Stats,
        Timeout,
        Verdict, //
    }, //
};

/// A filter like `dataready`, under a name that accf itself does not register.
pub(crate) struct TestFilter;

impl Filter for TestFilter {
    const NAME: &'static str = "accf_kunit";

    fn verdict(segment: crate::policy::SegmentKind) -> Verdict {
        crate::policy::Dataready::verdict(segment)
    }
}

/// The defaults with which the suites register [`TestFilter`], except for the timeout.
pub(crate) const DEFAULTS: Defaults = Defaults {
    config: Config {
        timeout: Timeout::Never,
        max_parked: 1000,
        on_timeout: OnTimeout::Accept,
        parking: Parking::On,
        on_close: OnClose::Accept,
        probe_ms: 0,
    },
    namespace_limit: 0,
};

/// Registers [`TestFilter`] with this timeout.
pub(crate) fn register(timeout: Timeout) -> Result<Pin<KBox<Registration>>> {
    register_with(Defaults {
        config: Config {
            timeout,
            ..DEFAULTS.config
        },
        ..DEFAULTS
    })
}

/// Registers [`TestFilter`] with other defaults.
pub(crate) fn register_with(defaults: Defaults) -> Result<Pin<KBox<Registration>>> {
    KBox::pin_init(
        net::callbacks::ulp::register::<TestFilter>(defaults),
        GFP_KERNEL,
    )
}

/// How often the original `send_synack` of fabricated requests was called.
pub(crate) static SYNACKS: Atomic<i32> = Atomic::new(0);
/// How often the original destructor of fabricated requests was called.
pub(crate) static DESTROYED: Atomic<i32> = Atomic::new(0);

/// Counts the call: the original `send_synack` of fabricated requests.
///
/// # Safety
///
/// No preconditions: uses none of its arguments.
unsafe extern "C" fn count_synack(
    _sk: *const bindings::sock,
    _dst: *mut bindings::dst_entry,
    _fl: *mut bindings::flowi,
    _req: *mut bindings::request_sock,
    _foc: *mut bindings::tcp_fastopen_cookie,
    _type: bindings::tcp_synack_type,
    _skb: *mut bindings::sk_buff,
) -> core::ffi::c_int {
    SYNACKS.add(1, Relaxed);
    0
}

/// Counts the call: the original destructor of fabricated requests.
///
/// # Safety
///
/// No preconditions: does not use its argument.
unsafe extern "C" fn count_destroyed(_req: *mut bindings::request_sock) {
    DESTROYED.add(1, Relaxed);
}

/// How often the original `send_reset` of fabricated requests was called.
pub(crate) static RESETS: Atomic<i32> = Atomic::new(0);

/// Counts the call: the original `send_reset` of fabricated requests.
///
/// # Safety
///
/// No preconditions: uses none of its arguments.
unsafe extern "C" fn count_reset(
    _sk: *const bindings::sock,
    _skb: *mut bindings::sk_buff,
    _reason: bindings::sk_rst_reason,
) {
    RESETS.add(1, Relaxed);
}

/// The operations of fabricated requests, as constant as those of the kernel.
struct Originals {
    ops: bindings::request_sock_ops,
    tcp: bindings::tcp_request_sock_ops,
}

// SAFETY: The operations are constant.
unsafe impl Sync for Originals {}

static ORIGINALS: Originals = Originals {
    ops: bindings::request_sock_ops {
        family: tcp_segment::AF_INET,
        destructor: Some(count_destroyed),
        send_reset: Some(count_reset),
        // SAFETY: All zeroes are valid: integers of 0, and functions and pointers that are NULL.
        ..unsafe { core::mem::zeroed() }
    },
    tcp: bindings::tcp_request_sock_ops {
        send_synack: Some(count_synack),
        // SAFETY: All zeroes are valid: integers of 0, and functions and pointers that are NULL.
        ..unsafe { core::mem::zeroed() }
    },
};

/// A listening socket.
pub(crate) struct TestListener(NonNull<bindings::socket>);

impl TestListener {
    /// Makes a listener with [`TestFilter`].
    pub(crate) fn filtered() -> Result<Self> {
        let listener = Self::plain()?;
        listener.attach(c"accf_kunit")?;
        Ok(listener)
    }

    /// Makes a listener without a filter.
    pub(crate) fn plain() -> Result<Self> {
        // SAFETY: Called in process context; there is no other precondition.
        let sock = unsafe { bindings::accf_kunit_listener(tcp_segment::AF_INET) };
        NonNull::new(sock).map(Self).ok_or(ENOMEM)
    }

    /// Calls `setsockopt(TCP_ULP)` with `name`.
    pub(crate) fn attach(&self, name: &CStr) -> Result {
        // SAFETY: The socket is alive as long as `self`, and the name ends with a NUL.
        kernel::error::to_result(unsafe {
            bindings::accf_kunit_attach(self.0.as_ptr(), name.as_char_ptr())
        })
    }

    /// Makes it look like a listener of another namespace until the return value is dropped. What
    /// the module keeps of each namespace stays that of the first.
    pub(crate) fn leave_init_net(&self) -> Result<Elsewhere<'_>> {
        // SAFETY: The socket is alive as long as `self`, and no other code uses it.
        let has_left = unsafe { bindings::accf_kunit_leave_init_net(self.0.as_ptr()) };
        has_left.then_some(Elsewhere(self)).ok_or(ENOMEM)
    }

    /// Returns its `struct sock`.
    pub(crate) fn sk(&self) -> *mut bindings::sock {
        // SAFETY: The socket is alive as long as `self`.
        unsafe { bindings::accf_kunit_sk(self.0.as_ptr()) }
    }

    /// Returns the listening socket as `net/` sees it.
    pub(crate) fn listen_sock(&self) -> ListenSock<'_> {
        // SAFETY: The socket is this test's, a TCP socket, and in memory as long as `self`.
        unsafe { ListenSock::from_raw(NonNull::new_unchecked(self.sk())) }
    }

    /// Returns whether the `icsk_af_ops` of the listener are overridden.
    pub(crate) fn has_accf_af_ops(&self) -> bool {
        // SAFETY: The socket is alive as long as `self`, and no other code changes it.
        let hook = unsafe {
            let csk = self.sk().cast::<bindings::inet_connection_sock>();
            (*(*csk).icsk_af_ops).syn_recv_sock
        };
        let ours: af_ops::SynRecvSock = af_ops::syn_recv_sock::<TestFilter>;
        hook.is_some_and(|hook| ptr::fn_addr_eq(hook, ours))
    }

    /// Gives it the `icsk_af_ops` of a plain socket, as the kernel gives it other ones when it
    /// connects to an IPv4-mapped address.
    pub(crate) fn lose_af_ops(&self, plain: &Self) {
        let csk = |sk: *mut bindings::sock| sk.cast::<bindings::inet_connection_sock>();
        // SAFETY: Both sockets are alive as long as their `TestListener`.
        unsafe { (*csk(self.sk())).icsk_af_ops = (*csk(plain.sk())).icsk_af_ops };
    }

    /// Returns how many requests count against its SYN backlog.
    pub(crate) fn half_open(&self) -> i32 {
        self.listen_sock().half_open()
    }

    /// Returns its counters.
    pub(crate) fn stats(&self) -> Result<Stats> {
        let bh = BhGuard::new();
        let bh = bh.token();
        // SAFETY: The socket is alive as long as `self`. If it has a filter, that was attached by
        // `callbacks::ulp::init()`.
        let listener = unsafe { Listener::of(self.listen_sock(), &bh) }.ok_or(ENOENT)?;
        Ok(listener.info(&bh).stats)
    }

    /// Returns how many parked requests are counted by the source that has the most; 0 if that is
    /// not more than one. Fabricated requests have one source.
    pub(crate) fn counted_by_source(&self) -> Result<u32> {
        let bh = BhGuard::new();
        let bh = bh.token();
        // SAFETY: The socket is alive as long as `self`. If it has a filter, that was attached by
        // `callbacks::ulp::init()`.
        let listener = unsafe { Listener::of(self.listen_sock(), &bh) }.ok_or(ENOENT)?;
        let [greediest, ..] = listener.info(&bh).sources;
        Ok(greediest.map_or(0, |source| source.parked))
    }

    /// Calls `f` with its queue, which is locked: `f` must not assert anything.
    pub(crate) fn with_queue<T>(&self, f: impl FnOnce(&mut ParkQueue) -> T) -> Result<T> {
        let bh = BhGuard::new();
        let bh = bh.token();
        // SAFETY: The socket is alive as long as `self`. If it has a filter, that was attached by
        // `callbacks::ulp::init()`.
        let listener = unsafe { Listener::of(self.listen_sock(), &bh) }.ok_or(ENOENT)?;
        let mut queue = listener.queue.lock(&bh);
        Ok(f(&mut queue))
    }

    /// Calls `f` with bottom halves off: `f` must not assert anything. No lock is held.
    pub(crate) fn with_listener<T>(
        &self,
        f: impl FnOnce(&Listener, &BhDisabled<'_>) -> T,
    ) -> Result<T> {
        let bh = BhGuard::new();
        let bh = bh.token();
        // SAFETY: The socket is alive as long as `self`. If it has a filter, that was attached by
        // `callbacks::ulp::init()`.
        let listener = unsafe { Listener::of(self.listen_sock(), &bh) }.ok_or(ENOENT)?;
        Ok(f(&listener, &bh))
    }

    /// Sets the backlog as `listen()` does, which knows nothing of the module.
    pub(crate) fn listen_again(&self, backlog: u32) {
        self.listen_sock().swap_backlog(backlog);
    }

    /// Returns the backlog.
    pub(crate) fn backlog(&self) -> u32 {
        self.listen_sock().backlog()
    }

    /// Returns its configuration.
    pub(crate) fn config(&self) -> Result<Config> {
        let bh = BhGuard::new();
        let bh = bh.token();
        // SAFETY: The socket is alive as long as `self`. If it has a filter, that was attached by
        // `callbacks::ulp::init()`.
        let listener = unsafe { Listener::of(self.listen_sock(), &bh) }.ok_or(ENOENT)?;
        Ok(listener.info(&bh).config)
    }

    /// Changes its configuration, as `setsockopt(SOL_ACCF, ACCF_CONFIG)` does.
    pub(crate) fn set_config(&self, config: Config) -> Result {
        let bh = BhGuard::new();
        let bh = bh.token();
        // SAFETY: The socket is alive as long as `self`. If it has a filter, that was attached by
        // `callbacks::ulp::init()`.
        let listener = unsafe { Listener::of(self.listen_sock(), &bh) }.ok_or(ENOENT)?;
        listener.set_config(&bh, config.into());
        Ok(())
    }

    /// Returns how many of its requests count as young.
    pub(crate) fn young(&self) -> i32 {
        self.listen_sock().young()
    }
}

impl Drop for TestListener {
    fn drop(&mut self) {
        // SAFETY: The socket is alive, and is not used any more.
        unsafe { bindings::accf_kunit_close(self.0.as_ptr()) };
    }
}

/// A listener that looks like one of another namespace.
pub(crate) struct Elsewhere<'a>(&'a TestListener);

impl Elsewhere<'_> {
    /// Makes the listener hold its namespace, as the sockets of processes do, or not.
    pub(crate) fn hold(&self, holds: bool) {
        // SAFETY: The socket is alive as long as the listener, and no other code uses it.
        unsafe { bindings::accf_kunit_hold_net(self.0 .0.as_ptr(), holds) };
    }
}

impl Drop for Elsewhere<'_> {
    fn drop(&mut self) {
        // SAFETY: The socket is alive as long as the listener, no other code uses it, and it has
        // left the first namespace.
        unsafe { bindings::accf_kunit_return_to_init_net(self.0 .0.as_ptr()) };
    }
}

/// A fabricated request of a listener.
pub(crate) struct TestRequest(NonNull<bindings::request_sock>);

impl TestRequest {
    /// Makes a request whose SYN-ACK was sent `age_us` microseconds ago.
    pub(crate) fn new(listener: &TestListener, age_us: u32) -> Result<Self> {
        // SAFETY: The listener is alive, and the operations are constant.
        let req = unsafe {
            bindings::accf_kunit_request(listener.sk(), &ORIGINALS.ops, &ORIGINALS.tcp, age_us)
        };
        NonNull::new(req).map(Self).ok_or(ENOMEM)
    }

    /// Clones it as `inet_reqsk_clone()` does.
    pub(crate) fn kernel_clone(&self) -> Result<Self> {
        // SAFETY: The request is alive as long as `self`.
        NonNull::new(unsafe { bindings::accf_kunit_clone(self.0.as_ptr()) })
            .map(Self)
            .ok_or(ENOMEM)
    }

    /// Sets its `sk`, as `inet_csk_reqsk_queue_add()` does.
    pub(crate) fn set_child(&self, child: *mut bindings::sock) {
        // SAFETY: The request is alive as long as `self`, and no other code uses it.
        unsafe { (*self.0.as_ptr()).sk = child };
    }

    /// Returns where the entry is that it has while it is parked.
    pub(crate) fn entry(&self) -> *const bindings::request_sock {
        // SAFETY: The request is alive as long as `self`, and no other code changes the field.
        unsafe { (*self.0.as_ptr()).dl_next }
    }

    /// Returns its `sk`.
    pub(crate) fn child(&self) -> *mut bindings::sock {
        // SAFETY: The request is alive as long as `self`, and no other code uses it.
        unsafe { (*self.0.as_ptr()).sk }
    }

    /// Returns the request as the type of `net/`.
    pub(crate) fn request(&self) -> RequestSock<'_> {
        // SAFETY: The request is alive as long as `self`, and has a listener.
        unsafe { RequestSock::from_raw(self.0) }
    }

    /// Makes it look as if it were not in the table of connections any more.
    pub(crate) fn unhash(&self) {
        // SAFETY: The request is alive as long as `self`.
        unsafe { bindings::accf_kunit_unhash(self.0.as_ptr()) }
    }

    /// Makes it look as if its last reference had just been put, and its destructor were about to
    /// run.
    pub(crate) fn kill(&self) {
        // SAFETY: The request is alive as long as `self`.
        unsafe { bindings::accf_kunit_kill(self.0.as_ptr()) }
    }

    /// Returns how many references there are to it.
    pub(crate) fn references(&self) -> u32 {
        // SAFETY: The request is alive as long as `self`.
        unsafe { bindings::accf_kunit_references(self.0.as_ptr()) }
    }

    /// Stops its SYN-ACK timer, as if the timer's handler were running.
    pub(crate) fn stop_timer(&self) {
        // SAFETY: The request is alive as long as `self`.
        unsafe { bindings::accf_kunit_stop_timer(self.0.as_ptr()) }
    }

    /// Makes its SYN-ACK timer fire `jiffies` from now.
    pub(crate) fn set_timer(&self, jiffies: i64) {
        // SAFETY: The request is alive as long as `self`.
        unsafe { bindings::accf_kunit_set_timer(self.0.as_ptr(), jiffies as usize) }
    }

    /// Makes it look as if its SYN-ACK timer had fired `timeouts` times.
    pub(crate) fn time_out(&self, timeouts: u8) {
        // SAFETY: The request is alive as long as `self`.
        unsafe { bindings::accf_kunit_time_out(self.0.as_ptr(), timeouts) }
    }

    /// Returns how often its SYN-ACK timer has fired.
    pub(crate) fn timeouts(&self) -> u8 {
        // SAFETY: The request is alive as long as `self`.
        unsafe { bindings::accf_kunit_timeouts(self.0.as_ptr()) }
    }

    /// Returns in how many jiffies its SYN-ACK timer will fire, or -1 if it is not pending.
    pub(crate) fn timer_in(&self) -> i64 {
        // SAFETY: The request is alive as long as `self`.
        unsafe { bindings::accf_kunit_timer_in(self.0.as_ptr()) as i64 }
    }

    /// Returns how long ago its SYN-ACK was sent, in microseconds.
    pub(crate) fn synack_age_us(&self) -> u64 {
        // SAFETY: The request is alive as long as `self`.
        unsafe { bindings::accf_kunit_synack_age_us(self.0.as_ptr()) }
    }

    /// Passes the client's bare ACK to the listener, as `tcp_check_req()` does. Returns whether the
    /// ACK was dropped.
    pub(crate) fn bare_ack(&self, window: u16) -> Result<bool> {
        let segment = TestSegment::new(self, 0, false, window)?;
        let _bh = BhGuard::new();
        let mut own_req = false;
        // SAFETY: The arguments are as the kernel would pass them. The suites only call this where
        // the request can be parked, so that TCP's own function, which cannot handle a fabricated
        // request, is not called.
        let child = unsafe {
            af_ops::syn_recv_sock::<TestFilter>(
                self.request().listen_sock().as_ptr(),
                segment.0.as_ptr(),
                self.0.as_ptr(),
                ptr::null_mut(),
                self.0.as_ptr(),
                &mut own_req,
                None,
            )
        };
        Ok(child.is_null())
    }

    /// Tries to park it, as `syn_recv_sock()` of its listener does. Returns whether it is parked.
    pub(crate) fn park(&self, window: u16) -> Result<bool> {
        let segment = TestSegment::new(self, 0, false, window)?;
        let bh = BhGuard::new();
        let bh = bh.token();
        // SAFETY: The segment is as TCP would pass it, and lives until this function returns.
        let segment = unsafe { TcpSegment::from_raw(segment.0.as_ptr()) };
        let request = self.request();
        // SAFETY: The request holds a reference to its listener. If that has a filter, the filter
        // was attached by `callbacks::ulp::init()`.
        let listener = unsafe { Listener::of(request.listen_sock(), &bh) }.ok_or(ENOENT)?;
        // SAFETY: `self` holds a reference to the request.
        Ok(unsafe { listener.park(&bh, request, segment) })
    }

    /// Completes it, as `syn_recv_sock()` of its listener does when data has made a connection of
    /// it.
    pub(crate) fn complete(&self) -> Result {
        let bh = BhGuard::new();
        let bh = bh.token();
        let request = self.request();
        // SAFETY: The request holds a reference to its listener. If that has a filter, the filter
        // was attached by `callbacks::ulp::init()`.
        let listener = unsafe { Listener::of(request.listen_sock(), &bh) }.ok_or(ENOENT)?;
        // SAFETY: No other code has a reference to the fabricated request, as if it had been taken
        // out of the table of connections.
        let _ = unsafe { listener.complete(&bh, request, crate::policy::SegmentKind::Data) };
        Ok(())
    }

    /// Makes it fall back to plain TCP, as `callbacks::ulp::clone()` does when the kernel makes a
    /// connection of it without the filter.
    pub(crate) fn fall_back(&self) -> Result {
        let bh = BhGuard::new();
        let bh = bh.token();
        let request = self.request();
        // SAFETY: The request holds a reference to its listener. If that has a filter, the filter
        // was attached by `callbacks::ulp::init()`.
        let listener = unsafe { Listener::of(request.listen_sock(), &bh) }.ok_or(ENOENT)?;
        // SAFETY: This test holds a reference to the request.
        unsafe { listener.fall_back(&bh, &request) };
        Ok(())
    }

    /// Returns its phase, if it is parked.
    pub(crate) fn phase(&self) -> Option<Phase> {
        let bh = BhGuard::new();
        let bh = bh.token();
        let request = self.request();
        // SAFETY: The request holds a reference to its listener. If that has a filter, the filter
        // was attached by `callbacks::ulp::init()`.
        unsafe { Listener::of(request.listen_sock(), &bh) }?.phase_of(&bh, &request)
    }

    /// Returns the window of its last bare ACK, if it is parked.
    pub(crate) fn last_window(&self) -> Option<u16> {
        let bh = BhGuard::new();
        let bh = bh.token();
        let request = self.request();
        // SAFETY: The request holds a reference to its listener. If that has a filter, the filter
        // was attached by `callbacks::ulp::init()`.
        let listener = unsafe { Listener::of(request.listen_sock(), &bh) }?;
        if !listener.has_parked(&request) {
            return None;
        }
        // SAFETY: It is parked, and no other CPU ends that while this function runs.
        Some(unsafe { request.parked() }.ack().window)
    }

    /// Returns whether its operations are the fabricated originals.
    pub(crate) fn has_original_ops(&self) -> bool {
        let request = self.request();
        ptr::eq(request.ops(), &ORIGINALS.ops) && ptr::eq(request.tcp_ops(), &ORIGINALS.tcp)
    }

    /// Calls its `send_synack`, as `tcp_rtx_synack()` does.
    pub(crate) fn send_synack(&self) -> i32 {
        let _bh = BhGuard::new();
        // SAFETY: The operations of a request are valid.
        let Some(send) = (unsafe { (*self.request().tcp_ops()).send_synack }) else {
            return -1;
        };
        // SAFETY: The socket and the request are as the kernel would pass them. Nothing uses the
        // other arguments: the override passes them to the fabricated original.
        unsafe {
            send(
                self.request().listen_sock().as_ptr(),
                ptr::null_mut(),
                ptr::null_mut(),
                self.0.as_ptr(),
                ptr::null_mut(),
                bindings::tcp_synack_type_TCP_SYNACK_RETRANS,
                ptr::null_mut(),
            )
        }
    }

    /// Calls its `send_ack`, as `tcp_check_req()` does for a segment outside of the window.
    pub(crate) fn send_ack(&self) {
        let _bh = BhGuard::new();
        // SAFETY: The operations of a request are valid.
        if let Some(send) = unsafe { (*self.request().ops()).send_ack } {
            // SAFETY: The socket and the request are as the kernel would pass them. Nothing uses
            // the segment: the fabricated operations have no `send_ack`.
            unsafe {
                send(
                    self.request().listen_sock().as_ptr(),
                    ptr::null_mut(),
                    self.0.as_ptr(),
                )
            };
        }
    }

    /// Returns the latest timestamp that the client may echo.
    pub(crate) fn last_tsval(&self) -> u32 {
        // SAFETY: The request is alive as long as `self`.
        unsafe { bindings::accf_kunit_last_tsval(self.0.as_ptr()) }
    }

    /// Returns the timestamp of a segment that would be sent now.
    pub(crate) fn tsval_now(&self) -> u32 {
        // SAFETY: The request is alive as long as `self`.
        unsafe { bindings::accf_kunit_tsval_now(self.0.as_ptr()) }
    }

    /// Calls its destructor, as `__reqsk_free()` does.
    pub(crate) fn destroy(&self) {
        // SAFETY: The operations of a request are valid.
        if let Some(destructor) = unsafe { (*self.request().ops()).destructor } {
            // SAFETY: No other code uses the request, as if its last reference had been put.
            unsafe { destructor(self.0.as_ptr()) };
        }
    }
}

impl Drop for TestRequest {
    fn drop(&mut self) {
        // SAFETY: The request is alive, and is not used any more.
        unsafe { bindings::accf_kunit_free(self.0.as_ptr()) };
    }
}

/// A fabricated segment.
pub(crate) struct TestSegment(NonNull<bindings::sk_buff>);

impl TestSegment {
    /// Makes the reply to the SYN-ACK of `request`, with `len` bytes of data, and a FIN if `fin`.
    pub(crate) fn new(request: &TestRequest, len: u32, fin: bool, window: u16) -> Result<Self> {
        // SAFETY: The request is alive.
        let skb = unsafe { bindings::accf_kunit_segment(request.0.as_ptr(), len, fin, window) };
        NonNull::new(skb).map(Self).ok_or(ENOMEM)
    }

    /// Returns what `net/` takes it for.
    pub(crate) fn kind(&self, request: &TestRequest) -> crate::policy::SegmentKind {
        // SAFETY: The segment is as TCP would pass it, and lives as long as `self`.
        unsafe { TcpSegment::from_raw(self.0.as_ptr()) }.kind(request.request().client_isn())
    }
}

impl Drop for TestSegment {
    fn drop(&mut self) {
        // SAFETY: The segment is alive, and is not used any more.
        unsafe { bindings::accf_kunit_free_segment(self.0.as_ptr()) };
    }
}
