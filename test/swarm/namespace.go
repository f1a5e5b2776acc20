// SPDX-License-Identifier: Apache-2.0

package swarm

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// isolatedName is argv[0] of a process that has a network namespace of its own.
const isolatedName = "meshd-swarm"

// Command prepares a second process of this program, in a network namespace of its own,
// where [Isolated] is true. The kernel removes the namespace when the process ends. It
// needs root.
func Command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args = append([]string{isolatedName}, args...)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET,
		Pdeathsig:  unix.SIGKILL, // whatever becomes of this process
	}
	return cmd
}

// Isolated reports whether the process was started by [Command].
func Isolated() bool { return os.Args[0] == isolatedName }

// SetUp makes the process's namespace usable.
func SetUp(ctx context.Context) error {
	for _, args := range [][]string{
		{"link", "set", "lo", "up"},
		{"route", "add", "local", addresses, "dev", "lo", "src", "127.0.0.1"},
	} {
		if out, err := exec.CommandContext(ctx, "ip", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("set loopback up: %w: %s", err, out)
		}
	}
	return nil
}

// Lose drops a percentage of all incoming UDP packets in the process's namespace; senders
// don't notice.
func Lose(ctx context.Context, percent int) error {
	cmd := exec.CommandContext(ctx, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(fmt.Sprintf(`
table inet swarm {
	chain arrive {
		type filter hook input priority filter
		meta l4proto udp numgen random mod 100 < %d counter drop
	}
}
`, percent))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("lose packets: %w: %s", err, out)
	}
	return nil
}
