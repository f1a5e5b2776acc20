// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
)

// systemd learns in one message that the tunnels are set up, and how they are.
func TestTellSystemd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	tellSystemd("3 of 4 nodes answer; Services through web1")
	message := make([]byte, 1024)
	n, err := socket.Read(message)
	if want := "READY=1\nSTATUS=3 of 4 nodes answer; Services through web1"; err != nil || string(message[:n]) != want {
		t.Errorf("got %q, %v, want %q", message[:n], err, want)
	}
}

// The unit is not started again for what only a person can mend, which this exit code tells systemd.
func TestConnectRefused(t *testing.T) {
	for name, want := range map[string]string{
		"home-and-garden-": "home-and-garden- has 16 characters, and a network device's name may have 15",
		"home-and-garden":  "read configuration: open none.conf",
	} {
		cmd := newConnect(&paths{stateDir: t.TempDir()})
		cmd.SilenceUsage, cmd.SilenceErrors = true, true
		cmd.SetOut(io.Discard)
		cmd.SetArgs([]string{"--interface", name, "none.conf"})
		if err := cmd.Execute(); exitCode(err) != exitUsage || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", name, err, want)
		}
	}
}
