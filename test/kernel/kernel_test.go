// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// The test binary is the first process of the virtual machines that it starts.
func TestMain(m *testing.M) {
	if os.Getpid() == 1 {
		inside()
	}
	os.Exit(m.Run())
}

// bootLimit is for a virtual machine with a small job, on a busy machine.
const bootLimit = 3 * time.Minute

// boot runs shell commands in a virtual machine and returns what they print.
func boot(ctx context.Context, t *testing.T, lines ...string) (code int, output string, err error) {
	t.Helper()
	var b bytes.Buffer
	code, err = bootTo(ctx, t, &b, lines...)
	return code, b.String(), err
}

func bootTo(ctx context.Context, t *testing.T, w io.Writer, lines ...string) (code int, err error) {
	t.Helper()
	var j job
	for _, line := range lines {
		j.Commands = append(j.Commands, command{Args: []string{"/bin/sh", "-c", line}, Dir: "/", Env: []string{"GREETING=hello"}})
	}
	m := machine{dir: t.TempDir(), job: j, output: w}
	return m.run(ctx)
}

func TestJobInVirtualMachine(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), bootLimit)
	defer cancel()
	code, output, err := boot(ctx, t,
		"echo $GREETING; echo; echo",
		"exit 3",
		"ip link add wg0 type wireguard && tc qdisc add dev lo root netem loss 5% && printf 'no newline'")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("hello\n\n\nno newline\n", output); code != exitFailed || diff != "" {
		t.Errorf("got exit code %d, want %d; output (-want +got):\n%s", code, exitFailed, diff)
	}
}

// TestInstructionsAreCounted has a virtual machine wait for longer than it may run: where
// time is what is executed, waiting takes none.
func TestInstructionsAreCounted(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), bootLimit)
	defer cancel()
	var output bytes.Buffer
	wait := command{Args: []string{"/bin/sh", "-c", "sleep 3600; grep -c ^processor /proc/cpuinfo"}, Dir: "/"}
	m := machine{dir: t.TempDir(), job: job{Commands: []command{wait}}, icount: true, shift: idleShift, output: &output}
	code, err := m.run(ctx)
	if err != nil || code != 0 || output.String() != "1\n" {
		t.Errorf("got exit code %d, %v and %q processors, want 1 after an hour", code, err, output.String())
	}
}

// TestVirtualMachineDies ends virtual machines before their job is done, in several ways.
func TestVirtualMachineDies(t *testing.T) {
	for _, tt := range []struct {
		name, line string
		want       error
		console    string // what the error shows of it
	}{
		{"panic", "echo c >/proc/sysrq-trigger", errNoExit, "sysrq triggered crash"},
		{"power off", "echo o >/proc/sysrq-trigger; sleep 600", errNoExit, ""},
		{"hang", "sleep 600", context.Canceled, "it begins"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), bootLimit)
			defer cancel()
			w := io.Discard
			if tt.want == context.Canceled {
				w = writerFunc(func(p []byte) (int, error) {
					cancel() // the time is up as soon as the machine has begun to hang
					return len(p), nil
				})
			}
			code, err := bootTo(ctx, t, w, "echo it begins >/dev/console; sleep 2; echo begun; "+tt.line)
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.console) {
				t.Errorf("got exit code %d, %v, want %v with %q of the console", code, err, tt.want, tt.console)
			}
		})
	}
}

// TestDeadMachineIsStartedAgain has a machine die twice, which is an error, and checks
// that one that does not die is not run twice.
func TestDeadMachineIsStartedAgain(t *testing.T) {
	for _, tt := range []struct {
		name, line string
		want       error
		began      int
	}{
		{"dies", "echo o >/proc/sysrq-trigger; sleep 600", errNoExit, 2},
		{"lives", "true", nil, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var b bytes.Buffer
			line := command{Args: []string{"/bin/sh", "-c", "echo began; " + tt.line}, Dir: "/"}
			m := machine{dir: t.TempDir(), job: job{Commands: []command{line}}, output: &b}
			code, err := m.runTwice(t.Context(), bootLimit)
			if n := strings.Count(b.String(), "began\n"); code != 0 || !errors.Is(err, tt.want) || n != tt.began {
				t.Errorf("got exit code %d, %v after %d starts, want %v after %d", code, err, n, tt.want, tt.began)
			}
		})
	}
}

// TestFailedTestsAreNamed checks which tests run a second time.
func TestFailedTestsAreNamed(t *testing.T) {
	var got failures
	results := "=== RUN   TestA\n    --- FAIL: TestA/sub (1s)\n--- PASS: TestB (0.1s)\n\n--- FAIL: TestA (2.00s)\n--- FAIL: TestC (0.00s)\nFAIL\n" + exitLine + "1\n"
	if _, err := passOn(strings.NewReader(results), &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(failures{"TestA", "TestC"}, got); diff != "" {
		t.Errorf("failed tests (-want +got):\n%s", diff)
	}
	c := command{Package: "x", Args: []string{"x.test", "-test.run=^(TestA|TestB)$/"}}
	j, ok := job{Commands: []command{c}}.again(got)
	want := []string{"x.test", "-test.run=^(TestA|TestB)$/", "-test.run=^(TestA|TestC)$"}
	if diff := cmp.Diff(want, j.Commands[0].Args); !ok || diff != "" {
		t.Errorf("command (-want +got):\n%s", diff)
	}
	if _, ok := j.again(nil); ok {
		t.Error("no test failed, but some are run again")
	}
	other := job{Commands: []command{{Args: []string{"program"}}}}
	if _, ok := other.again(got); ok {
		t.Error("a name that is not a test's is run again")
	}
}

// TestSplit checks that every command gets a job of its own, with all files.
func TestSplit(t *testing.T) {
	a, b := command{Package: "a"}, command{Package: "b"}
	files := []string{"x"}
	want := []job{{Commands: []command{a}, Files: files}, {Commands: []command{b}, Files: files}}
	if diff := cmp.Diff(want, job{Commands: []command{a, b}, Files: files}.split()); diff != "" {
		t.Errorf("jobs (-want +got):\n%s", diff)
	}
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestPassOn(t *testing.T) {
	for _, tt := range []struct {
		name, results, want string
		code                int
		err                 error
	}{
		{"success", "a\n\n" + exitLine + "0\n", "a\n", 0, nil},
		{"failure", "a\nb\n\n" + exitLine + "1\n", "a\nb\n", 1, nil},
		{"empty lines", "\n\na\n\n\n" + exitLine + "0\n", "\n\na\n\n", 0, nil},
		{"cut off", "a\nhalf a li", "a\nhalf a li", 0, errNoExit},
		{"cut off in the exit line", "a\n\n" + exitLine, "a\n\n" + exitLine, 0, errNoExit},
		{"nothing", "", "", 0, errNoExit},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got strings.Builder
			code, err := passOn(strings.NewReader(tt.results), &got)
			if code != tt.code || !errors.Is(err, tt.err) {
				t.Errorf("got %d, %v, want %d, %v", code, err, tt.code, tt.err)
			}
			if diff := cmp.Diff(tt.want, got.String()); diff != "" {
				t.Errorf("output (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSelectModules(t *testing.T) {
	var dep strings.Builder
	for _, w := range wantedModules {
		if strings.HasSuffix(w, ".ko") {
			dep.WriteString("kernel/" + w + ":\n")
		} else {
			dep.WriteString("kernel/" + w + "/one.ko: kernel/lib/needed.ko\n")
		}
	}
	dep.WriteString("kernel/fs/ext4/ext4.ko: kernel/fs/jbd2.ko\nkernel/lib/needed.ko:\n")
	got, err := selectModules(dep.String())
	if err != nil {
		t.Fatal(err)
	}
	all := strings.Join(got, " ")
	if len(got) != len(wantedModules)+1 || !strings.Contains(all, "kernel/lib/needed.ko") || strings.Contains(all, "ext4") {
		t.Errorf("got %v, want what is wanted, what that needs, and no more", got)
	}
	if _, err := selectModules("kernel/crypto/one.ko:\n"); err == nil || !strings.Contains(err.Error(), "the kernel has none at") {
		t.Errorf("got %v, want an error that names the missing modules", err)
	}
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{{}, {"test"}, {"exec"}, {"nothing"}} {
		if _, err := do(t.Context(), options{timeout: time.Second}, args); !errors.Is(err, errUsage) {
			t.Errorf("%q: got %v, want %v", args, err, errUsage)
		}
	}
}
