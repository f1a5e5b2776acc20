// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/meshd/meshd/test/lab"
)

// asDemo is the environment variable that makes the test binary run as the demo.
const asDemo = "DEMO_TEST_AS_DEMO"

// isAlone is set in the process that has a network and mounts of its own.
const isAlone = "DEMO_TEST_IS_ALONE"

func TestMain(m *testing.M) {
	lab.Main()
	switch {
	case os.Getenv(asDemo) != "":
		main()
	case os.Getenv(isAlone) == "":
		os.Exit(runAlone())
	}
	os.Exit(m.Run())
}

// runAlone runs the tests once more with a network and mounts of their own: what others do on this machine
// meanwhile is not to be taken for the demo's. It returns the exit code.
func runAlone() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), isAlone+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// demoCommand runs the demo with the meshd that MESHD names, or one built here.
func demoCommand(ctx context.Context, t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	binary := os.Getenv("MESHD")
	if binary == "" {
		binary = filepath.Join(t.TempDir(), "meshd")
		if out, err := exec.CommandContext(ctx, "go", "build", "-o", binary, "../../cmd/meshd").CombinedOutput(); err != nil {
			t.Fatalf("build meshd: %v: %s", err, out)
		}
	}
	cmd := exec.CommandContext(ctx, "/proc/self/exe", append([]string{"-meshd", binary}, args...)...)
	cmd.Env = append(os.Environ(), asDemo+"=1")
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

func TestTwoDemosAtOnce(t *testing.T) {
	leavesNothing(t)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	var g errgroup.Group
	for nodes, last := range map[int]string{
		4: "demo: ok, 12 of 12 node pairs, 12 of 12 pod pairs",
		3: "demo: ok, 6 of 6 node pairs, 6 of 6 pod pairs",
	} {
		cmd := demoCommand(ctx, t, "-nodes", fmt.Sprint(nodes))
		g.Go(func() error { return endsWith(cmd, last) })
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
}

func TestLocations(t *testing.T) {
	for _, topology := range []string{"location", "cross"} {
		t.Run(topology, func(t *testing.T) {
			leavesNothing(t)
			ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
			defer cancel()
			cmd := demoCommand(ctx, t, "-topology", topology)
			if err := endsWith(cmd, "demo: ok, 30 of 30 node pairs, 30 of 30 pod pairs"); err != nil {
				t.Error(err)
			}
		})
	}
}

// endsWith runs a demo, which must succeed and print this last line.
func endsWith(cmd *exec.Cmd, last string) error {
	out, err := cmd.CombinedOutput()
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if got := lines[len(lines)-1]; err != nil || got != last {
		return fmt.Errorf("%v: got %w and last line %q, want %q; all of it:\n%s", cmd.Args[3:], err, got, last, out)
	}
	return nil
}

// TestInterruptedDemoLeavesNothing interrupts a demo in the middle.
func TestInterruptedDemoLeavesNothing(t *testing.T) {
	leavesNothing(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := demoCommand(ctx, t, "-nodes", "4")
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var holders []string
	for len(holders) < 7 { // the router, four hosts and some daemons
		if err := ctx.Err(); err != nil {
			t.Fatalf("wait for hosts: %v", err)
		}
		holders = children(t, cmd.Process.Pid)
		time.Sleep(10 * time.Millisecond)
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("interrupted demo: got %v, want exit status 1\n%s", err, output.String())
	}
	for _, pid := range holders {
		if _, err := os.Stat(filepath.Join("/proc", pid)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("process %s is left", pid)
		}
	}
}

// children returns the process numbers of a process's children.
func children(t *testing.T, pid int) []string {
	t.Helper()
	paths, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ESRCH) {
			t.Fatal(err)
		}
		all = append(all, strings.Fields(string(b))...)
	}
	return all
}

// TestCommandLine checks that usage errors are reported before anything is made.
func TestCommandLine(t *testing.T) {
	for _, args := range [][]string{
		{"-nodes", "1"}, {"-nodes", "51"}, {"-nodes", "many"}, {"-topology", "ring"}, {"-hosts", "4"},
	} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			out, err := demoCommand(t.Context(), t, args...).CombinedOutput()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != 2 {
				t.Errorf("got %v, want exit status 2", err)
			}
			if !strings.Contains(string(out), args[0]) {
				t.Errorf("got %q, want a message about %s", out, args[0])
			}
		})
	}
}

func TestReport(t *testing.T) {
	var stations []station
	for _, name := range []string{"aws", "gcp", "azure"} {
		stations = append(stations, station{Node: lab.NewNode(&lab.Host{Name: name}, "")})
	}
	aws, gcp, azure := stations[0], stations[1], stations[2]
	lost := errors.New("pod 10.42.1.2: 100% packet loss")
	for name, test := range map[string]struct {
		pairs       []*pair
		out, failed string // what is printed, and what the error says
		without     string // what it doesn't
	}{
		"all answered": {
			pairs: []*pair{{from: aws, to: gcp}, {from: gcp, to: aws}},
			out:   "demo: ok, 2 of 2 node pairs, 2 of 2 pod pairs\n",
		},
		"a pod did not": {
			pairs:   []*pair{{from: aws, to: gcp, pod: lost}, {from: gcp, to: azure}},
			failed:  "failed, 2 of 2 node pairs, 1 of 2 pod pairs\naws to gcp: " + lost.Error() + "\n",
			without: "azure",
		},
		"a node did not": {
			pairs:   []*pair{{from: aws, to: gcp}, {from: azure, to: gcp, node: errors.New("overlay address 10.4.0.2: no answer")}},
			failed:  "failed, 1 of 2 node pairs, 2 of 2 pod pairs\nazure to gcp: overlay address 10.4.0.2: no answer\n",
			without: "aws",
		},
	} {
		t.Run(name, func(t *testing.T) {
			var out strings.Builder
			err := report(&out, test.pairs, "")
			if out.String() != test.out {
				t.Errorf("printed: got %q, want %q", out.String(), test.out)
			}
			if test.failed == "" {
				if err != nil || exitCode(err) != 0 {
					t.Errorf("got error %v and exit code %d, want none", err, exitCode(err))
				}
				return
			}
			if err == nil || !strings.HasPrefix(err.Error(), test.failed) || strings.Contains(err.Error(), test.without) {
				t.Errorf("got error %q, want one that begins with %q and doesn't blame %s", err, test.failed, test.without)
			}
			if got := exitCode(err); got != 1 {
				t.Errorf("exit code: got %d, want 1", got)
			}
		})
	}
}

func TestNames(t *testing.T) {
	got := names(10)[6:]
	if diff := cmp.Diff([]string{"linode", "ovh", "cloud-9", "cloud-10"}, got); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
}

func TestLastLines(t *testing.T) {
	for name, test := range map[string]struct{ text, want string }{
		"none":  {"", ""},
		"fewer": {"a\n", "a"},
		"more":  {"a\nb\nc\n", "b\nc"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := lastLines(test.text, 2); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}
