//! A clock that is cheap to read and exact to some milliseconds, for what takes seconds.

#[cfg(target_os = "linux")]
mod source {
    use std::time::Duration;

    /// A moment of the monotonic clock as of the kernel's last tick: a quarter of the cost of
    /// `std::time::Instant`.
    #[derive(Clone, Copy)]
    pub(crate) struct Moment(Duration);

    impl Moment {
        #[inline]
        pub(crate) fn now() -> Self {
            let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            // SAFETY: the pointer is to a timespec of ours. Should the clock be unknown, nothing is
            // written, and no time seems to pass.
            #[allow(unsafe_code)]
            unsafe {
                libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut time);
            }
            let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
            Self(Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0)))
        }

        #[inline]
        pub(crate) fn elapsed(self) -> Duration {
            Self::now().0.saturating_sub(self.0)
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod source {
    pub(crate) use std::time::Instant as Moment;
}

pub(crate) use source::Moment;
