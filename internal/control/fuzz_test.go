// SPDX-License-Identifier: Apache-2.0

package control

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/meshd/meshd/internal/mesh"
)

// FuzzHandler sends arbitrary requests. Each answer with a code of ours has a JSON body,
// a refused request does not reach the daemon, and only POST changes anything.
func FuzzHandler(f *testing.F) {
	for _, path := range []string{"status", "plan", "forget", "revoke", "renumber", "drain", "graph", "clients", "clients/add", "clients/remove", "nothing"} {
		f.Add(http.MethodGet, "/v1/"+path, "node=a&force=true&probe=true&format=dot", []byte("{}"))
		f.Add(http.MethodPost, "/v1/"+path, "node=%00&without=b", []byte(nil))
	}
	f.Add("", "/v1/../v1/forget", "node", []byte("x"))
	f.Fuzz(func(t *testing.T, method, path, query string, body []byte) {
		d := &counting{}
		w := httptest.NewRecorder()
		r := &http.Request{
			Method: method, URL: &url.URL{Path: path, RawQuery: query}, Host: "meshd",
			Header: http.Header{}, Body: http.NoBody, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		}
		if len(body) > 0 {
			r = httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(body))
			r.Method, r.URL = method, &url.URL{Path: path, RawQuery: query}
		}
		handler(d).ServeHTTP(w, r.WithContext(t.Context()))
		switch w.Code {
		case http.StatusOK, http.StatusConflict, http.StatusInternalServerError:
			if !json.Valid(w.Body.Bytes()) {
				t.Errorf("%s %q?%q: got code %d with %q, want JSON", method, path, query, w.Code, w.Body)
			}
		default:
			if d.reads+d.writes > 0 {
				t.Errorf("%s %q?%q: got code %d, but the daemon was called", method, path, query, w.Code)
			}
		}
		if method != http.MethodPost && d.writes > 0 {
			t.Errorf("%s %q?%q changes something", method, path, query)
		}
	})
}

// counting is a daemon that counts the calls that read and those that change something.
type counting struct{ reads, writes int }

func (d *counting) Status() Status { d.reads++; return Status{} }

func (d *counting) Plan(context.Context) (Plan, error) { d.reads++; return Plan{}, nil }
func (d *counting) Ping(context.Context, string, int) (Ping, error) {
	d.reads++
	return Ping{}, nil
}

func (d *counting) PlanWithout(context.Context, string) (Plan, error) { d.reads++; return Plan{}, nil }

func (d *counting) Probe(context.Context) (Status, error) { d.reads++; return Status{}, nil }

func (d *counting) Network(context.Context) (Network, error) { d.reads++; return Network{}, nil }

func (d *counting) Graph() (mesh.Graph, error) { d.reads++; return mesh.Graph{}, nil }

func (d *counting) Forget(context.Context, string) error { d.writes++; return ErrRefused }

func (d *counting) Revoke(context.Context, string) (Revoked, error) {
	d.writes++
	return Revoked{}, nil
}

func (d *counting) RotateSecret(context.Context) (Rotated, error) {
	d.writes++
	return Rotated{}, nil
}

func (d *counting) Renumber(context.Context, bool) (Renumbered, error) {
	d.writes++
	return Renumbered{}, nil
}

func (d *counting) Drain(context.Context, bool) (Drained, error) { d.writes++; return Drained{}, nil }

func (d *counting) AddClient(context.Context, ClientRequest) (ClientConfig, error) {
	d.writes++
	return ClientConfig{}, nil
}

func (d *counting) ClientConfig(string) (ClientConfig, error) { d.reads++; return ClientConfig{}, nil }

func (d *counting) RemoveClient(context.Context, string) (RemovedClient, error) {
	d.writes++
	return RemovedClient{}, nil
}
