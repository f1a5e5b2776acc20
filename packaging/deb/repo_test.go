// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// fingerprint is a line of gpg --with-colons.
var fingerprint = regexp.MustCompile(`(?m)^fpr:+([0-9A-F]{40}):`)

// signer makes a key in a keyring of the test's own, and returns its fingerprint.
func signer(t *testing.T) string {
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
	output(t, "gpg", "--batch", "--quiet", "--passphrase", "", "--quick-generate-key", "meshd test", "ed25519", "sign", "never")
	m := fingerprint.FindStringSubmatch(output(t, "gpg", "--list-secret-keys", "--with-colons"))
	if m == nil {
		t.Fatal("gpg made no key")
	}
	return m[1]
}

// apt returns a function that runs apt-get on a root of its own, which has only the
// repository and this machine's list of packages.
func apt(t *testing.T, repo string) func(args ...string) (string, error) {
	t.Helper()
	root := t.TempDir()
	for _, dir := range []string{"etc/apt/sources.list.d", "etc/apt/keyrings", "etc/apt/apt.conf.d", "etc/apt/preferences.d", "var/lib/apt/lists/partial", "var/cache/apt/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	sources, err := os.ReadFile(filepath.Join(repo, "meshd.sources"))
	if err != nil {
		t.Fatal(err)
	}
	keyring := filepath.Join(root, "etc/apt/keyrings/meshd.gpg")
	text := strings.ReplaceAll(string(sources), "/etc/apt/keyrings/meshd.gpg", keyring)
	if err := os.WriteFile(filepath.Join(root, "etc/apt/sources.list.d/meshd.sources"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	output(t, "cp", filepath.Join(repo, "meshd.gpg"), keyring)
	return func(args ...string) (string, error) {
		options := []string{"-o", "Dir=" + root, "-o", "Dir::State::status=/var/lib/dpkg/status", "-o", "Dir::Bin::methods=/usr/lib/apt/methods", "-o", "APT::Sandbox::User=root"}
		out, err := exec.Command("apt-get", append(options, args...)...).CombinedOutput()
		return string(out), err
	}
}

func TestRepository(t *testing.T) {
	key := signer(t)
	t.Setenv("DIST", built)
	output(t, "./repo.sh", key)
	get := apt(t, filepath.Join(built, "apt"))
	if out, err := get("update", "--error-on=any"); err != nil {
		t.Fatalf("apt-get update: %v\n%s", err, out)
	}
	out, err := get("install", "--simulate", "--no-install-recommends", "meshd")
	if err != nil || !strings.Contains(out, "Inst meshd (1.2.3-1 meshd:stable") {
		t.Errorf("apt-get install meshd: %v\n%s", err, out)
	}
	// A second run replaces the first.
	output(t, "./repo.sh", key)

	list := filepath.Join(built, "apt/dists/stable/InRelease")
	signed, err := os.ReadFile(list)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(list, []byte(strings.Replace(string(signed), "Origin: meshd", "Origin: other", 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := get("update", "--error-on=any"); err == nil {
		t.Errorf("apt-get update took a repository that somebody has changed:\n%s", out)
	}
}

func TestRepositoryNeedsAKey(t *testing.T) {
	signer(t)
	t.Setenv("DIST", built)
	for _, args := range [][]string{nil, {""}, {"0000000000000000000000000000000000000000"}} {
		out, err := exec.Command("./repo.sh", args...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "key") {
			t.Errorf("repo.sh %q: got %v: %s; want it to ask for a key", args, err, out)
		}
	}
}
