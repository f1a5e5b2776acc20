// SPDX-License-Identifier: Apache-2.0

// Command kernel runs tests on the kernel that users run: Debian's cloud kernel,
// with WireGuard and netem, in a virtual machine that QEMU emulates. It takes the
// kernel from Debian's package, without installing it, and the programs that
// tests call from the machine it runs on.
//
//	kernel [-run REGEXP] test PACKAGE...      the tests of packages
//	kernel [-file PATH]... exec COMMAND ...   one command
//	kernel shell [PACKAGE...]                 bash on the console, to look around
//
// With -icount, before any of them, time in the virtual machine is the number of
// instructions that its one processor has executed, see machine.go: what is measured
// there does not depend on what else the real machine does. With -shift the processor is
// faster or slower.
//
// The files of a job have the same paths in the virtual machine as on the real one, so
// tests and commands need not know where they run. Output comes as it is printed, and
// kernel exits with 1 if a test or the command fails. Every few tests get a new virtual
// machine. If a machine hangs, panics or ends early, kernel reports it, prints the last
// lines of the console, and starts that machine once more, because an emulated kernel
// sometimes locks up; the second time it exits with 2. Tests run one at a time. Failed
// ones are run once more, in another machine, because an emulated one stalls for seconds.
// The first failure stays in the output; a test that fails twice has failed.
//
// On a machine whose own kernel has WireGuard and netem, test and exec run
// directly, without -icount.
//
// The program is also process 1 of the virtual machine, see inside.go, where it does the
// job and turns the machine off.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

func main() {
	if os.Getpid() == 1 {
		inside()
	}
	os.Exit(run())
}

// Exit codes.
const (
	exitFailed = 1 // what ran in the virtual machine failed
	exitBroken = 2 // it could not be run, or not to its end
)

// files is a flag that may be given several times.
type files []string

func (f *files) String() string { return strings.Join(*f, " ") }

func (f *files) Set(path string) error {
	*f = append(*f, path)
	return nil
}

func run() int {
	var with files
	pattern := flag.String("run", "", "regular expression: which tests to run")
	timeout := flag.Duration("timeout", 35*time.Minute, "how long one virtual machine may live")
	icount := flag.Bool("icount", false, "count time in executed instructions, on one processor")
	shift := flag.Int("shift", idleShift, "with -icount, an instruction takes 2 to the power of `n` nanoseconds")
	flag.Var(&with, "file", "a `path` to have in the virtual machine, for exec")
	flag.Parse()
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer cancel()

	code, err := do(ctx, options{run: *pattern, timeout: *timeout, icount: *icount, shift: *shift, files: with}, flag.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, "kernel:", err)
		return exitBroken
	}
	return code
}

type options struct {
	run     string
	timeout time.Duration
	icount  bool
	shift   int
	files   []string
}

var errUsage = errors.New("want one of: test PACKAGE..., exec COMMAND ARGUMENT..., shell [PACKAGE...]")

func do(ctx context.Context, o options, args []string) (int, error) {
	if len(args) == 0 {
		return 0, errUsage
	}
	dir, err := os.MkdirTemp("", "meshd-kernel-")
	if err != nil {
		return 0, fmt.Errorf("make directory for the run: %w", err)
	}
	defer os.RemoveAll(dir)

	j := job{Files: o.files}
	switch verb, rest := args[0], args[1:]; {
	case verb == "test" && len(rest) > 0:
		err = j.addTests(ctx, dir, o.run, rest)
	case verb == "exec" && len(rest) > 0:
		err = j.addCommand(rest)
	case verb == "shell":
		if len(rest) > 0 {
			err = j.addTests(ctx, dir, o.run, rest)
		}
		j.Shell = true
	default:
		return 0, errUsage
	}
	if err != nil {
		return 0, err
	}
	switch {
	case j.Shell:
		return (&machine{dir: dir, job: j, icount: o.icount, shift: o.shift}).run(ctx)
	case !o.icount && ownKernelWillDo(ctx):
		return j.run(ctx, os.Stdout), ctx.Err()
	}
	return runEach(ctx, dir, j.split(), o)
}

// runEach does each of the jobs in a virtual machine of its own, and the tests that
// fail once more.
func runEach(ctx context.Context, dir string, jobs []job, o options) (int, error) {
	code := 0
	for _, one := range jobs {
		m := machine{dir: dir, job: one, icount: o.icount, shift: o.shift, output: os.Stdout}
		c, err := m.runTwice(ctx, o.timeout)
		if again, ok := one.again(m.failed); err == nil && c == exitFailed && ok {
			fmt.Fprintln(os.Stderr, "kernel: once more:", strings.Join(m.failed, " "))
			m = machine{dir: dir, job: again, icount: o.icount, shift: o.shift, output: os.Stdout}
			c, err = m.runTwice(ctx, o.timeout)
		}
		if err != nil {
			return 0, err
		}
		code = max(code, c)
	}
	return code, nil
}
