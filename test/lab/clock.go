// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ownClock is the environment variable which is set if the machine, and so its clock, is
// for the lab alone. The kernel lab's virtual machine sets it.
const ownClock = "MESHD_LAB_OWN_CLOCK"

// ErrClock means that the clock was not moved because the machine also does other work.
var ErrClock = errors.New("other programs use the clock of this machine; run the test in the kernel lab's virtual machine")

// OwnsClock reports whether MoveClock may move the clock.
func OwnsClock() bool { return os.Getenv(ownClock) != "" }

// MoveClock moves the machine's clock, which all hosts share. It returns ErrClock where
// that is not allowed.
func MoveClock(by time.Duration) error {
	if !OwnsClock() {
		return ErrClock
	}
	now := unix.NsecToTimespec(time.Now().Add(by).UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &now); err != nil {
		return fmt.Errorf("move clock: %w", err)
	}
	return nil
}
