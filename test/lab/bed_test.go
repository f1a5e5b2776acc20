// SPDX-License-Identifier: Apache-2.0

package lab_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/meshd/meshd/test/lab"
)

// abandonedLab is the environment variable that makes the test binary create a lab and
// wait until it is killed.
const abandonedLab = "LAB_TEST_ABANDONED"

func TestMain(m *testing.M) {
	lab.Main()
	if os.Getenv(abandonedLab) != "" {
		fmt.Println(abandon())
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

func newLab(t *testing.T) (context.Context, *lab.Lab) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	l, err := lab.New(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		if err := l.Close(); err != nil {
			t.Errorf("close lab: %v", err)
		}
	})
	return ctx, l
}

func newHost(ctx context.Context, t *testing.T, l *lab.Lab, name string, u lab.Underlay) *lab.Host {
	t.Helper()
	h, err := l.Host(ctx, name, u)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// answers reports whether addr answers a ping from h within the given seconds.
func answers(ctx context.Context, h *lab.Host, addr netip.Addr, seconds int) error {
	_, err := h.Run(ctx, "ping", "-n", "-q", "-c", "1", "-i", "0.1", "-w", fmt.Sprint(seconds), addr.String())
	return err
}

// abandon makes a lab with one thing of every kind in it and waits for ever.
func abandon() error {
	ctx := context.Background()
	l, err := lab.New(ctx)
	if err != nil {
		return err
	}
	h, err := l.Host(ctx, "abandoned", lab.NAT)
	if err != nil {
		return err
	}
	if _, err := h.Run(ctx, "ip", "netns", "add", "abandoned"); err != nil {
		return err
	}
	if err := h.WriteFile("/etc/cni/net.d/abandoned", "", 0o644); err != nil {
		return err
	}
	if err := h.Command(ctx, "sleep", "987654").Start(); err != nil {
		return err
	}
	fmt.Println("ready")
	select {}
}
