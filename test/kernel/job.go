// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

// job is the work of one virtual machine.
type job struct {
	Commands []command
	Files    []string // in the virtual machine they have the same paths
	Shell    bool     // runs nothing; a person does
}

// command is one program to run.
type command struct {
	Package string // of a test; "" for anything else
	Args    []string
	Dir     string
	Env     []string // beside what every command has
}

// run does the job where this process is, and returns the exit code of the
// first command that fails. Tests end with a line like those of go test.
func (j job) run(ctx context.Context, output *os.File) int {
	code := 0
	for _, c := range j.Commands {
		began := time.Now()
		cmd := exec.CommandContext(ctx, c.Args[0], c.Args[1:]...)
		cmd.Dir, cmd.Env = c.Dir, append(os.Environ(), c.Env...)
		cmd.Stdout, cmd.Stderr = output, output // no pipe: what is printed is out at once
		cmd.WaitDelay = 10 * time.Second
		verdict := "ok  "
		if err := cmd.Run(); err != nil {
			verdict = "FAIL"
			var exit *exec.ExitError
			if !errors.As(err, &exit) {
				fmt.Fprintln(output, err)
			}
			if code == 0 {
				code = exitFailed
			}
		}
		if c.Package != "" {
			fmt.Fprintf(output, "%s\t%s\t%.1fs\n", verdict, c.Package, time.Since(began).Seconds())
		}
	}
	return code
}

// split returns jobs of one command each.
func (j job) split() []job {
	var each []job
	for _, c := range j.Commands {
		each = append(each, job{Commands: []command{c}, Files: j.Files})
	}
	return each
}

// again returns the job of running failed tests once more. It reports whether there are
// any: a test binary may fail without the name of a failed test, and
// other programs may print what looks like one.
func (j job) again(tests []string) (job, bool) {
	c := j.Commands[0]
	if len(tests) == 0 || c.Package == "" {
		return job{}, false
	}
	c.Args = append(slices.Clone(c.Args), "-test.run=^("+strings.Join(tests, "|")+")$") // the last ones count
	return job{Commands: []command{c}, Files: j.Files}, true
}

// programs are the environment variables with paths of programs for labs. A command gets
// the variables and the programs.
var programs = []string{"MESHD", "CNITOOL"}

// addCommand adds a command, whose program is looked up here.
func (j *job) addCommand(args []string) error {
	path, err := exec.LookPath(args[0])
	if err != nil {
		return fmt.Errorf("find command: %w", err)
	}
	if path, err = filepath.Abs(path); err != nil {
		return fmt.Errorf("find command: %w", err)
	}
	dir, err := os.Getwd()
	if err != nil {
		return fmt.Errorf("find working directory: %w", err)
	}
	j.Files = append(j.Files, path)
	c := command{Args: append([]string{path}, args[1:]...), Dir: dir}
	for _, name := range programs {
		if program := os.Getenv(name); program != "" {
			j.Files = append(j.Files, program)
			c.Env = append(c.Env, name+"="+program)
		}
	}
	j.Commands = append(j.Commands, c)
	return nil
}

// testTimeout bounds one package's tests, so that a hanging one shows its stacks.
const testTimeout = "30m"

// testParallel is one: the hosts of two tests at once have been seen to stall each other
// until neither came to an end.
const testParallel = "1"

// testTag is the build tag of tests that only a kernel with WireGuard and netem
// can run.
const testTag = "kernel"

// perMachine is how many tests of one package a virtual machine runs before the next one
// takes over: what tests leave behind in the kernel slows down all later ones.
const perMachine = 30

// addTests builds the tests of packages in dir, and the programs that they run: meshd, a
// later build of it, and cnitool.
func (j *job) addTests(ctx context.Context, dir, run string, packages []string) error {
	env, err := j.addPrograms(ctx, dir)
	if err != nil {
		return err
	}
	list, err := goTool(ctx, "list", append([]string{"-f", "{{.ImportPath}} {{.Dir}}"}, packages...)...)
	if err != nil {
		return err
	}
	for line := range strings.Lines(list) {
		path, src, _ := strings.Cut(strings.TrimSpace(line), " ")
		binary := filepath.Join(dir, strings.ReplaceAll(path, "/", "_")+".test")
		if _, err := goTool(ctx, "test", "-c", "-tags", testTag, "-ldflags", "-s -w", "-o", binary, path); err != nil {
			return err
		}
		tests, err := testsOf(ctx, binary, run, env)
		if err != nil {
			return fmt.Errorf("list tests of %s: %w", path, err)
		}
		if len(tests) == 0 {
			continue
		}
		j.Files = append(j.Files, binary)
		if testdata := filepath.Join(src, "testdata"); exists(testdata) {
			j.Files = append(j.Files, testdata)
		}
		_, below, _ := strings.Cut(run, "/")
		for some := range slices.Chunk(tests, perMachine) {
			j.Commands = append(j.Commands, command{
				Package: path,
				Args: []string{
					binary, "-test.v", "-test.timeout=" + testTimeout, "-test.parallel=" + testParallel,
					"-test.run=^(" + strings.Join(some, "|") + ")$/" + below,
				},
				Dir: src,
				Env: env,
			})
		}
	}
	if len(j.Commands) == 0 {
		return fmt.Errorf("no test in %s is named like %q", strings.Join(packages, " "), run)
	}
	return nil
}

// addPrograms adds the programs that tests run, and returns the environment with their
// paths.
func (j *job) addPrograms(ctx context.Context, dir string) ([]string, error) {
	meshd, next := filepath.Join(dir, "meshd"), filepath.Join(dir, "meshd-next")
	if built := os.Getenv("MESHD"); built != "" {
		meshd = built
	} else if _, err := goTool(ctx, "build", "-o", meshd, "./cmd/meshd"); err != nil {
		return nil, err
	}
	if _, err := goTool(ctx, "build", "-ldflags", "-X main.version=next", "-o", next, "./cmd/meshd"); err != nil {
		return nil, err
	}
	cnitool, err := goTool(ctx, "tool", "-n", "cnitool")
	if err != nil {
		return nil, err
	}
	cnitool = strings.TrimSpace(cnitool)
	j.Files = append(j.Files, meshd, next, cnitool)
	return []string{"MESHD=" + meshd, "MESHD_NEXT=" + next, "CNITOOL=" + cnitool}, nil
}

// testsOf lists the tests and fuzz targets of a test binary that match the pattern without
// its part for subtests.
func testsOf(ctx context.Context, binary, run string, env []string) ([]string, error) {
	top, _, _ := strings.Cut(run, "/")
	if _, err := regexp.Compile(top); err != nil {
		return nil, err
	}
	if top == "" {
		top = "."
	}
	cmd := exec.CommandContext(ctx, binary, "-test.list="+top)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.Output()
	isTest := func(name string) bool { return strings.HasPrefix(name, "Test") || strings.HasPrefix(name, "Fuzz") }
	return slices.DeleteFunc(strings.Fields(string(out)), func(name string) bool { return !isTest(name) }), err
}

// goTool runs a subcommand of go and returns what it printed. What it builds is
// static, so that it runs on any kernel without a library.
func goTool(ctx context.Context, verb string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", append([]string{verb}, args...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("run go %s: %w: %s", verb, err, out)
	}
	return string(out), nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// ownKernelWillDo reports whether this machine's own kernel has WireGuard and netem. It
// tries them in a temporary network namespace.
func ownKernelWillDo(ctx context.Context) bool {
	cmd := exec.CommandContext(ctx, "sh", "-c", "ip link add wg-trial type wireguard && tc qdisc add dev lo root netem delay 1ms")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	cmd.Stdout, cmd.Stderr = io.Discard, io.Discard
	return cmd.Run() == nil
}
