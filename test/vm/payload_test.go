// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/meshd/meshd/test/debian"
)

// Releases of the package that are installed first and upgraded to.
const (
	oldRelease = "1.0.0"
	newRelease = "1.1.0"
)

// fingerprint is a line of gpg --with-colons.
var fingerprint = regexp.MustCompile(`(?m)^fpr:+([0-9A-F]{40}):`)

// makePayload makes a disk with what the machines get from outside: an apt
// repository with the old release, another with the new one, and the program pod.
func makePayload(t *testing.T, dir string) (disk string) {
	t.Helper()
	root := filepath.Join(dir, "payload")
	key := makeKey(t)
	for name, release := range map[string]string{"old": oldRelease, "new": newRelease} {
		dist := filepath.Join(root, name)
		packaging(t, "build.sh", []string{"DIST=" + dist, "VERSION=" + release, "ARCHS=amd64"})
		packaging(t, "repo.sh", []string{"DIST=" + dist, "URL=file:/payload/" + name + "/apt"}, key)
	}
	pod := filepath.Join(root, "pod")
	cmd := exec.Command("go", "build", "-trimpath", "-o", pod, "./pod")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build pod: %v\n%s", err, out)
	}
	command(t, pod, "image", pod+".tar")
	disk = filepath.Join(dir, "payload.disk")
	if err := debian.MakeDisk(disk, root, "160M"); err != nil {
		t.Fatal(err)
	}
	return disk
}

// packaging runs one of the scripts that make deb and make repo run.
func packaging(t *testing.T, script string, env []string, args ...string) {
	t.Helper()
	cmd := exec.Command("../../packaging/deb/"+script, args...)
	cmd.Env = append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", script, strings.Join(args, " "), err, out)
	}
}

// makeKey makes a key to sign with, in a keyring of the test's own.
func makeKey(t *testing.T) string {
	t.Helper()
	// Not t.TempDir, whose name may be too long for the agent's socket.
	home, err := os.MkdirTemp("", "gpg-")
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("GNUPGHOME", home)
	t.Cleanup(func() {
		_ = exec.Command("gpgconf", "--homedir", home, "--kill", "all").Run()
		os.RemoveAll(home)
	})
	command(t, "gpg", "--batch", "--quiet", "--passphrase", "", "--quick-generate-key", "meshd test", "ed25519", "sign", "never")
	m := fingerprint.FindStringSubmatch(command(t, "gpg", "--list-secret-keys", "--with-colons"))
	if m == nil {
		t.Fatal("gpg made no key")
	}
	return m[1]
}
