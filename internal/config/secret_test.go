// SPDX-License-Identifier: Apache-2.0

package config_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meshd/meshd/internal/config"
)

var (
	sampleSecret = base64.StdEncoding.EncodeToString([]byte(strings.Repeat("s", 32)))
	otherSecret  = base64.StdEncoding.EncodeToString([]byte(strings.Repeat("t", 32)))
)

func TestReadSecretsErrors(t *testing.T) {
	const advice = "write 32 random bytes in base64, as meshd secret new prints them"
	const ask = "copy it from another node, or for the first node run: meshd secret new --out FILE"
	tests := []struct {
		name    string
		mode    os.FileMode
		content string
		want    string // FILE stands for the path
	}{
		{"open to the group", 0o640, sampleSecret, "FILE: is open to other users (mode 0640): run: chmod 600 FILE"},
		{"open to all", 0o604, sampleSecret, "FILE: is open to other users (mode 0604): run: chmod 600 FILE"},
		{"empty", 0o600, "", "FILE: has no secret in it: " + ask},
		{"comments", 0o600, "# nothing\n\n", "FILE: has no secret in it: " + ask},
		{"not base64", 0o600, "\nhunter2 hunter2\n" + sampleSecret, "FILE:2: the secret is not base64: " + advice},
		{"two on a line", 0o600, sampleSecret + " " + otherSecret, "FILE:1: the secret is not base64: " + advice},
		{"bits beyond the end", 0o600, sampleSecret[:42] + "N=", "FILE:1: the secret is not base64: " + advice},
		{"short", 0o600, sampleSecret[:40], "FILE:1: the secret has 30 bytes instead of 32: " + advice},
		{"zero", 0o600, strings.Repeat("A", 43) + "=", "FILE:1: the secret is all zeroes: " + advice},
		{"two mistakes", 0o600, "x\nAAAA", "FILE:1: the secret is not base64: " + advice + "\nFILE:2: the secret has 3 bytes instead of 32: " + advice},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "secret")
			write(t, path, tt.mode, tt.content)
			_, err := config.ReadSecrets(path)
			if diff := cmp.Diff(strings.ReplaceAll(tt.want, "FILE", path), errorText(err)); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
		})
	}
}

func TestReadSecretsOfAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give a file away")
	}
	path := filepath.Join(t.TempDir(), "secret")
	write(t, path, 0o600, sampleSecret)
	if err := os.Chown(path, 4711, -1); err != nil {
		t.Fatal(err)
	}
	_, err := config.ReadSecrets(path)
	if want := path + ": belongs to user 4711: run: chown root " + path; errorText(err) != want {
		t.Errorf("got error %v, want %s", err, want)
	}
}

func TestReadSecretsOfADirectory(t *testing.T) {
	path := t.TempDir()
	if err := os.Chmod(path, 0o700); err != nil {
		t.Fatal(err)
	}
	_, err := config.ReadSecrets(path)
	if want := path + ": can't be read: read " + path + ": is a directory"; errorText(err) != want {
		t.Errorf("got error %v, want %s", err, want)
	}
}

// A secret in the wrong place of the file must not get into a log.
func TestErrorsHideSecrets(t *testing.T) {
	for _, file := range []string{
		sampleSecret,
		sampleSecret + "\n" + otherSecret + "\n",
		"secret-file: " + sampleSecret,
		"secret-file: " + strings.TrimRight(sampleSecret, "="),
		"secret-file: [" + sampleSecret + "]",
		"secret: " + sampleSecret,
		"secret-file:\n  secret: " + sampleSecret,
		"secret-file: \"" + sampleSecret + "\nnode: {}",
	} {
		_, err := config.Parse("meshd.yaml", []byte(file))
		if err == nil || strings.Contains(err.Error(), sampleSecret[:20]) {
			t.Errorf("%s: got error %v, want one without the secret", file, err)
		}
	}
}

func TestSecretsDoNotPrint(t *testing.T) {
	c := config.Config{Secrets: config.Secrets{[32]byte([]byte(strings.Repeat("s", 32)))}}
	var log strings.Builder
	slog.New(slog.NewJSONHandler(&log, nil)).Info("start", "config", c)
	slog.New(slog.NewTextHandler(&log, nil)).Info("start", "config", c)
	marshaled, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	texts := []string{log.String(), string(marshaled)}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d", "%q"} {
		texts = append(texts, fmt.Sprintf(verb, c), fmt.Sprintf(verb, c.Secrets))
	}
	for _, text := range texts {
		if strings.Contains(text, "ssss") || strings.Contains(text, "115 115") || strings.Contains(text, "115,115") ||
			strings.Contains(text, "7373") || strings.Contains(text, "0x73, 0x73") || strings.Contains(text, sampleSecret[:20]) {
			t.Errorf("shows the secret: %s", text)
		}
		if !strings.Contains(text, "1 not shown") {
			t.Errorf("doesn't say that a secret is there: %s", text)
		}
	}
}

// TestReplaceSecrets checks that a file gets other secrets, keeps its comments, and can be read again.
func TestReplaceSecrets(t *testing.T) {
	secrets := config.Secrets{{1}, {2}}
	got := secrets.Replace([]byte("# of the mesh\r\n\n  " + sampleSecret + "\n\t# and its end"))
	if !strings.HasPrefix(string(got), "# of the mesh\n# and its end\n") || strings.Contains(string(got), sampleSecret) {
		t.Errorf("got %q, want the comments, and not the old secret", got)
	}
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, got, 0o600); err != nil {
		t.Fatal(err)
	}
	if again, err := config.ReadSecrets(path); err != nil || !slices.Equal(again, secrets) {
		t.Errorf("read again: got %d secrets, %v", len(again), err)
	}
}
