// SPDX-License-Identifier: Apache-2.0

package control_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
)

func (d *daemon) AddClient(_ context.Context, r control.ClientRequest) (control.ClientConfig, error) {
	if r.Name == "" {
		return control.ClientConfig{}, fmt.Errorf("%w: no name", control.ErrRefused)
	}
	return control.ClientConfig{Name: r.Name, PublicKey: r.PublicKey, PresharedKey: r.PresharedKey != "", Access: r.Access, Resolver: r.ServiceGateway}, nil
}

func (d *daemon) ClientConfig(client string) (control.ClientConfig, error) {
	return control.ClientConfig{Name: client}, nil
}

func (d *daemon) RemoveClient(_ context.Context, client string) (control.RemovedClient, error) {
	return control.RemovedClient{ID: mesh.ID{9}, Name: client}, nil
}

func TestClients(t *testing.T) {
	c, _ := serve(t, &daemon{})
	got, err := c.AddClient(t.Context(), control.ClientRequest{Name: "a", PublicKey: "k", PresharedKey: "p", Access: []string{"pods"}, ServiceGateway: "n"})
	want := control.ClientConfig{Name: "a", PublicKey: "k", PresharedKey: true, Access: []string{"pods"}, Resolver: "n"}
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); err != nil || diff != "" {
		t.Errorf("add: %v (-want +got):\n%s", err, diff)
	}
	if _, err := c.AddClient(t.Context(), control.ClientRequest{}); !errors.Is(err, control.ErrRefused) {
		t.Errorf("add without a name: got %v, want ErrRefused", err)
	}
	if got, err := c.ClientConfig(t.Context(), "a&b"); err != nil || got.Name != "a&b" {
		t.Errorf("config: got %+v, %v", got, err)
	}
	if got, err := c.RemoveClient(t.Context(), "a&b"); err != nil || got != (control.RemovedClient{ID: mesh.ID{9}, Name: "a&b"}) {
		t.Errorf("remove: got %+v, %v", got, err)
	}
}
