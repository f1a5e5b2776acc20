// SPDX-License-Identifier: Apache-2.0

// Package deb holds what makes the Debian packages and the apt repository; its
// Go files are tests of it alone.
package deb

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// built is where TestMain's packages are, and architectures what they are for: this machine,
// and a foreign one that emulator runs the programs of.
var (
	built         string
	architectures []string
	emulator      = "qemu-aarch64"
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "meshd-deb-")
	if err == nil {
		defer os.RemoveAll(dir)
		built = filepath.Join(dir, "dist")
		err = buildBoth()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// buildBoth makes the packages for this machine and for a foreign one.
func buildBoth() error {
	native, err := exec.Command("dpkg", "--print-architecture").Output()
	if err != nil {
		return fmt.Errorf("ask dpkg for the architecture: %w", err)
	}
	architectures = []string{strings.TrimSpace(string(native)), "arm64"}
	if architectures[0] == "arm64" {
		architectures[1], emulator = "amd64", "qemu-x86_64"
	}
	return build(built, "ARCHS="+strings.Join(architectures, " "))
}

// build makes the packages of a made-up release.
func build(dist string, env ...string) error {
	cmd := exec.Command("./build.sh")
	cmd.Env = append(os.Environ(), "DIST="+dist, "VERSION=1.2.3", "SOURCE_DATE_EPOCH=1700000000")
	cmd.Env = append(cmd.Env, env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build packages: %w: %s", err, out)
	}
	return nil
}

func deb(arch string) string { return filepath.Join(built, "meshd_1.2.3-1_"+arch+".deb") }

// output runs a program that must succeed.
func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, &stderr)
	}
	return string(out)
}

// unpack unpacks the package for this machine.
func unpack(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	output(t, "dpkg-deb", "-R", deb(architectures[0]), dir)
	return dir
}

// TestTwoBuildsAreTheSame builds the package of this machine once more. Without ARCHS it is
// the only one.
func TestTwoBuildsAreTheSame(t *testing.T) {
	again := filepath.Join(t.TempDir(), "dist")
	if err := build(again, "ARCHS=", "TZ=Asia/Tokyo", "TMPDIR="+t.TempDir(), "LANG=C.UTF-8"); err != nil {
		t.Fatal(err)
	}
	name := filepath.Base(deb(architectures[0]))
	var contents [][]byte
	for _, dist := range []string{built, again} {
		content, err := os.ReadFile(filepath.Join(dist, name))
		if err != nil {
			t.Fatal(err)
		}
		contents = append(contents, content)
	}
	if !bytes.Equal(contents[0], contents[1]) {
		t.Error("two builds differ")
	}
	cmd := exec.Command("sha256sum", "--strict", "--check", "SHA256SUMS")
	cmd.Dir = again
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != name+": OK\n" {
		t.Errorf("SHA256SUMS: got %v: %s", err, out)
	}
}

func TestUnknownArchitecture(t *testing.T) {
	if err := build(filepath.Join(t.TempDir(), "dist"), "ARCHS=vax"); err == nil || !strings.Contains(err.Error(), "amd64 arm64 armhf") {
		t.Errorf("got %v, want an error with the architectures that there are", err)
	}
}

// TestForeignPackageStarts runs the program for the other architecture in an emulator: what
// needs no network, and what has much of the code behind it.
func TestForeignPackageStarts(t *testing.T) {
	dir := t.TempDir()
	output(t, "dpkg-deb", "-x", deb(architectures[1]), dir)
	program := filepath.Join(dir, "usr/bin/meshd")
	if got := output(t, emulator, program, "version"); !versionLine.MatchString(got) {
		t.Errorf("meshd version prints %q, want version, commit and date", got)
	}
	if got, want := output(t, emulator, program, "man"), output(t, filepath.Join(unpack(t), "usr/bin/meshd"), "man"); got != want {
		t.Errorf("the manual differs between architectures:\n%s", cmp.Diff(want, got))
	}
	secret := filepath.Join(dir, "secret")
	output(t, emulator, program, "secret", "new", "--out", secret)
	config := filepath.Join(dir, "meshd.yaml")
	if err := os.WriteFile(config, []byte("secret-file: "+secret+"\nno-such-key: 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(emulator, program, "run", "--config", config, "--state-dir", filepath.Join(dir, "state"), "--run-dir", filepath.Join(dir, "run")).CombinedOutput()
	if err == nil || !bytes.Contains(out, []byte("no-such-key")) {
		t.Errorf("meshd run with a wrong configuration: got %v: %s; want it to name the key", err, out)
	}
}

func TestLintian(t *testing.T) {
	for _, arch := range architectures {
		out, err := exec.Command("lintian", "--allow-root", "--tag-display-limit", "0", "--fail-on", "error,warning", deb(arch)).CombinedOutput()
		if err != nil || len(out) > 0 {
			t.Errorf("%s: %v\n%s", arch, err, out)
		}
	}
	// An override that nothing needs any more would hide what comes later.
	overridden := output(t, "lintian", "--allow-root", "--fail-on", "none", "--show-overrides", deb(architectures[0]))
	overrides, err := os.ReadFile("lintian-overrides")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Count(overridden, "O: "), strings.Count(string(overrides), "\nmeshd: "); got != want {
		t.Errorf("overridden tags: got %d, want %d\n%s", got, want, overridden)
	}
}

func TestContents(t *testing.T) {
	want := []string{
		"-rw-r--r-- usr/lib/systemd/network/10-meshd.network",
		"-rw-r--r-- usr/lib/systemd/system/k3s-agent.service.d/meshd.conf",
		"-rw-r--r-- usr/lib/systemd/system/k3s.service.d/meshd.conf",
		"-rw-r--r-- usr/lib/systemd/system/meshd-connect@.service",
		"-rw-r--r-- usr/lib/systemd/system/meshd-drain.service",
		"-rw-r--r-- usr/lib/systemd/system/meshd-online.service",
		"-rw-r--r-- usr/lib/systemd/system/meshd.service",
		"-rw-r--r-- usr/lib/sysusers.d/meshd.conf", "-rw-r--r-- usr/lib/tmpfiles.d/meshd.conf",
		"-rw-r--r-- usr/share/bash-completion/completions/meshd",
		"-rw-r--r-- usr/share/doc/meshd/changelog.Debian.gz",
		"-rw-r--r-- usr/share/doc/meshd/changelog.gz",
		"-rw-r--r-- usr/share/doc/meshd/copyright",
		"-rw-r--r-- usr/share/doc/meshd/examples/meshd-dashboard.json",
		"-rw-r--r-- usr/share/doc/meshd/examples/meshd-minimal.yaml",
		"-rw-r--r-- usr/share/doc/meshd/examples/meshd-rules.yaml",
		"-rw-r--r-- usr/share/doc/meshd/examples/meshd.yaml",
		"-rw-r--r-- usr/share/doc/meshd/notices.gz",
		"-rw-r--r-- usr/share/fish/vendor_completions.d/meshd.fish",
		"-rw-r--r-- usr/share/lintian/overrides/meshd",
		"-rw-r--r-- usr/share/man/man5/meshd.yaml.5.gz",
		"-rw-r--r-- usr/share/man/man8/meshd.8.gz",
		"-rw-r--r-- usr/share/zsh/vendor-completions/_meshd",
		"-rwxr-xr-x usr/bin/meshd",
		"drwx------ etc/meshd/",
	}
	for _, arch := range architectures {
		var got []string
		for line := range strings.Lines(output(t, "dpkg-deb", "-c", deb(arch))) {
			f := strings.Fields(line) // mode, owner, size, day, time, ./path
			if f[1] != "root/root" {
				t.Errorf("%s: owner of %s: got %s, want root/root", arch, f[5], f[1])
			}
			if f[0] != "drwxr-xr-x" {
				got = append(got, f[0]+" "+strings.TrimPrefix(f[5], "./"))
			}
		}
		slices.Sort(got)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", arch, diff)
		}
		if got := strings.TrimSpace(output(t, "dpkg-deb", "-f", deb(arch), "Architecture")); got != arch {
			t.Errorf("architecture: got %s, want %s", got, arch)
		}
		// An upgrade must not ask about a file that meshd init has written.
		if got := output(t, "dpkg-deb", "-I", deb(arch)); strings.Contains(got, "conffiles") {
			t.Errorf("%s has conffiles: %s", arch, got)
		}
	}
}

// TestManual checks that the manual has each command, and that man(1) prints no warnings.
func TestManual(t *testing.T) {
	dir := unpack(t)
	for page, wants := range map[string][]string{
		"man8/meshd.8.gz":      {"meshd status", "meshd secret new", "--state-dir", "/var/lib/meshd", "10-meshd.conflist"},
		"man5/meshd.yaml.5.gz": {"secret-file: /etc/meshd/secret", "listen-port: 51820"},
	} {
		cmd := exec.Command("man", "--local-file", "--warnings", filepath.Join(dir, "usr/share/man", page))
		cmd.Env = append(os.Environ(), "MANWIDTH=200", "LC_ALL=C.UTF-8")
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		if err := cmd.Run(); err != nil || stderr.Len() > 0 {
			t.Errorf("%s: %v: %s", page, err, &stderr)
		}
		for _, want := range wants {
			if !strings.Contains(stdout.String(), want) {
				t.Errorf("%s says nothing of %q:\n%s", page, want, &stdout)
			}
		}
	}
}

// TestNotConfiguredDoesNotStart: the package has no configuration, and the daemon says what makes
// one. After its exit code systemd does not restart it.
func TestNotConfiguredDoesNotStart(t *testing.T) {
	dir := unpack(t)
	out, err := exec.Command(filepath.Join(dir, "usr/bin/meshd"), "run",
		"--config", filepath.Join(dir, "etc/meshd.yaml"), "--state-dir", filepath.Join(dir, "state"), "--run-dir", filepath.Join(dir, "run")).CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 2 || !bytes.Contains(out, []byte("run meshd init")) {
		t.Errorf("got %v: %s; want exit code 2 and the advice to run meshd init", err, out)
	}
}

// versionLine is what meshd version prints of a package.
var versionLine = regexp.MustCompile(`^meshd 1\.2\.3, commit [0-9a-f]{7,} of \d{4}-\d\d-\d\d \(go1\.\S+\)\n$`)

// TestVersion: the program prints the version and commit that it was built from.
func TestVersion(t *testing.T) {
	if got := output(t, filepath.Join(unpack(t), "usr/bin/meshd"), "version"); !versionLine.MatchString(got) {
		t.Errorf("meshd version prints %q, want version, commit and date", got)
	}
}

// exposures are the highest allowed values of systemd-analyze security, in tenths: those
// of the units with the systemd of Debian 12.
var exposures = map[string]string{"meshd.service": "20", "meshd-drain.service": "7", "meshd-online.service": "7", "meshd-connect@.service": "19"}

func TestUnits(t *testing.T) {
	dir := unpack(t)
	units, err := filepath.Glob(filepath.Join(dir, "usr/lib/systemd/system/*.service"))
	if err != nil || len(units) != len(exposures) {
		t.Fatalf("units: got %v, %v, want %d", units, err, len(exposures))
	}
	for _, unit := range units {
		output(t, "systemd-analyze", "security", "--offline=true", "--threshold="+exposures[filepath.Base(unit)], unit)
		content, err := os.ReadFile(unit)
		if err != nil {
			t.Fatal(err)
		}
		// The programs are looked for where they will be; this one is in dir.
		content = bytes.ReplaceAll(content, []byte("/usr/bin/meshd"), []byte(filepath.Join(dir, "usr/bin/meshd")))
		if err := os.WriteFile(unit, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.Command("systemd-analyze", append([]string{"verify", "--man=no", "--recursive-errors=one"}, units...)...).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}
