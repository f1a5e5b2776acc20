// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ownClock is the variable of the environment that says that the machine is there
// for the lab alone, and its clock with it. The kernel lab's virtual machine sets it.
const ownClock = "MESHD_LAB_OWN_CLOCK"

// ErrClock is why the clock was not moved: it is that of a machine with other work.
var ErrClock = errors.New("the clock of this machine is not the lab's alone; the kernel lab's virtual machine has one that is")

// OwnsClock says whether MoveClock may move the clock.
func OwnsClock() bool { return os.Getenv(ownClock) != "" }

// MoveClock moves the clock of all hosts, which is the machine's. The error is
// ErrClock where it must stay.
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
