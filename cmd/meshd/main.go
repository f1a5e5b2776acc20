// SPDX-License-Identifier: Apache-2.0

// Command meshd joins hosts that share nothing but the internet into one
// network that k3s can stand on. See meshd --help, or the README.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/daemon"
)

// Exit codes, documented in meshd --help.
const (
	exitOK         = 0
	exitFailure    = 1
	exitUsage      = 2 // the command line or the configuration is wrong
	exitNotRunning = 3 // the command needs a running daemon
	exitRefused    = 4 // the daemon refuses the request
	exitDuplicate  = 5 // a duplicate of this node runs on another host
)

func main() { os.Exit(run()) }

// run executes the command line and returns the exit code.
func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	cmd, err := newRoot().ExecuteContextC(ctx)
	if err != nil && !errors.Is(err, errSaid) {
		fmt.Fprintln(os.Stderr, "meshd:", explain(cmd.CommandPath(), err))
	}
	return exitCode(err)
}

// errSaid is an error that the output has said already.
var errSaid = errors.New("see the output")

// explain adds the way out to errors that a command has in common with others.
func explain(command string, err error) error {
	switch {
	case errors.Is(err, control.ErrNotRunning):
		return fmt.Errorf("%w; start it: systemctl start meshd", err)
	case errors.Is(err, os.ErrPermission) && os.Geteuid() != 0:
		return fmt.Errorf("%s needs root: run: sudo %s (%w); members of the group meshd may run the commands that only read", command, command, err)
	}
	return err
}

func exitCode(err error) int {
	var usage usageError
	switch {
	case err == nil:
		return exitOK
	case config.Permanent(err), errors.As(err, &usage):
		return exitUsage
	case errors.Is(err, control.ErrNotRunning):
		return exitNotRunning
	case errors.Is(err, control.ErrRefused):
		return exitRefused
	case errors.Is(err, daemon.ErrDuplicate):
		return exitDuplicate
	}
	return exitFailure
}

// usageError is a mistake on the command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }
