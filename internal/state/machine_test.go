// SPDX-License-Identifier: Apache-2.0

package state

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReadMachineID(t *testing.T) {
	path := filepath.Join(t.TempDir(), "machine-id")
	for _, tt := range []struct {
		name, content, want string
	}{
		{"with a newline", "0123456789abcdef\n", "0123456789abcdef"},
		{"without", "0123456789abcdef", "0123456789abcdef"},
		{"empty", "\n", ""},
		{"of an image before its first boot", "uninitialized\n", ""},
	} {
		if err := os.WriteFile(path, []byte(tt.content), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := readMachineID(path); got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("%s: got %q, %v, want %q", tt.name, got, err, tt.want)
		} else if err != nil && !strings.HasSuffix(err.Error(), "; run: systemd-machine-id-setup") {
			t.Errorf("%s: got %v, want an error that says what to run", tt.name, err)
		}
	}
	if _, err := readMachineID(path + ".missing"); err == nil || !strings.Contains(err.Error(), "; run: systemd-machine-id-setup") {
		t.Errorf("missing: got %v, want an error that says what to run", err)
	}
}
