// SPDX-License-Identifier: Apache-2.0

package bugreport

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// unpack returns the files of a report.
func unpack(t *testing.T, report []byte) map[string]string {
	t.Helper()
	unzipped, err := gzip.NewReader(bytes.NewReader(report))
	if err != nil {
		t.Fatal(err)
	}
	files := make(map[string]string)
	for archive := tar.NewReader(unzipped); ; {
		header, err := archive.Next()
		if err == io.EOF {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		files[header.Name] = string(content)
	}
}

// TestNoSecrets has every source of a report print every secret of a node, in each encoding, and what is
// public besides.
func TestNoSecrets(t *testing.T) {
	key := func(b byte) []byte { return bytes.Repeat([]byte{b, b + 1, 0xfb, 0x2f}, 8) }
	seed, private, path, secret, old, public := key(1), key(3), key(5), key(7), key(9), key(11)
	std := base64.StdEncoding.EncodeToString
	const fingerprint = "9f86d081884c7d659a2feaa0c55ad015"
	dir := t.TempDir()
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	write("identity.json", `{"version": 1, "machine": "`+strings.Repeat("ab", 32)+`", "fingerprint": "`+fingerprint+`", "ed25519-seed": "`+std(seed)+`",
		"wireguard-public-key": "`+std(public)+`", "wireguard-private-key": "`+std(private)+`"}`)
	write("path.json", `{"version": 1, "private-key": "`+std(path)+`", "reserved": 7}`)
	var all []string
	for _, raw := range [][]byte{seed, private, path, secret, old} {
		all = append(all, std(raw), base64.RawURLEncoding.EncodeToString(raw), hex.EncodeToString(raw), strings.ToUpper(hex.EncodeToString(raw)), string(raw))
	}
	known := strings.Join(all, "\n")
	looks := "PrivateKey = abcdefg\n  preshared key: hijklmn\nURL http://me:opqrst@proxy:3128/\n--token uvwxyz\ntoken: uvwxyz\n\"password\": \"abc123\"\nK3S_TOKEN=uvwxyz\n"
	harmless := "\npublic key: " + std(public) + "\nFingerprint: " + fingerprint + "\nsecret-file: /etc/meshd/secret\npeer 198.51.100.1:51820\n"
	text := known + "\n" + looks + harmless
	var report bytes.Buffer
	err := Write(t.Context(), &report, Options{
		Name: "report", Config: write("meshd.yaml", text), StateDir: dir, RunDir: dir, SecretFile: write("secret", std(secret)+"\n"+std(old)+"\n"),
		Entries: []Entry{{"status.txt", func(context.Context) ([]byte, error) { return []byte(text), errors.New("failed with " + std(secret)) }}},
		Run:     func(context.Context, string, ...string) ([]byte, error) { return []byte(text), nil },
		Now:     time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
	})
	if err != nil {
		t.Fatal(err)
	}
	files := unpack(t, report.Bytes())
	if len(files) != len(commands)+3 {
		t.Errorf("%d files, want %d", len(files), len(commands)+3)
	}
	for name, content := range files {
		for _, s := range append(all, "abcdefg", "hijklmn", "opqrst", "abc123", "uvwxyz") {
			if strings.Contains(content, s) {
				t.Errorf("%s has %q", name, s)
			}
		}
		if name != "report/README.txt" && !strings.Contains(content, harmless) {
			t.Errorf("%s has not all that is harmless:\n%s", name, content)
		}
	}
	if !strings.Contains(files["report/status.txt"], "error: failed with (secret)") {
		t.Errorf("the error is not in the report:\n%s", files["report/status.txt"])
	}
}

// TestUnknownSecrets: without knowing the secrets there is no report.
func TestUnknownSecrets(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "identity.json"), 0o700); err != nil { // can't be read as a file
		t.Fatal(err)
	}
	if err := Write(t.Context(), io.Discard, Options{StateDir: dir, RunDir: dir}); err == nil || !strings.Contains(err.Error(), "must not contain") {
		t.Errorf("got %v, want an error", err)
	}
}

// TestCommand: the output has a limit, and a command that fails is an error.
func TestCommand(t *testing.T) {
	out, err := Command(t.Context(), "sh", "-c", "head -c 10000000 /dev/zero; echo end >&2; exit 3")
	if err == nil || len(out) != maxOutput {
		t.Errorf("got %d bytes, %v, want %d and an error", len(out), err, maxOutput)
	}
	if _, err := Command(t.Context(), "no-such-command"); err == nil {
		t.Error("a command that is not there: no error")
	}
}
