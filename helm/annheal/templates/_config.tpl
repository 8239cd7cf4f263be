{{/* What the roles are told: URLs, files and environment. */}}

{{- define "annheal.usesFileStore" -}}
{{- if hasPrefix "file://" .Values.objectStore.url }}true{{ end -}}
{{- end -}}

{{- define "annheal.usesS3" -}}
{{- if hasPrefix "s3://" .Values.objectStore.url }}true{{ end -}}
{{- end -}}

{{- define "annheal.metadataUrl" -}}
{{- $tls := .Values.metadata.tls -}}
{{- $query := list -}}
{{- if $tls.enabled -}}
{{- if not $tls.secretName -}}
{{- fail "metadata.tls.enabled needs metadata.tls.secretName" -}}
{{- end -}}
{{- if ne (empty $tls.certKey) (empty $tls.keyKey) -}}
{{- fail "metadata.tls.certKey and metadata.tls.keyKey go together: set both or neither" -}}
{{- end -}}
{{- $query = append $query "ca=/etc/annheal/etcd-tls/ca.crt" -}}
{{- if $tls.certKey -}}
{{- $query = append $query "cert=/etc/annheal/etcd-tls/tls.crt" -}}
{{- $query = append $query "key=/etc/annheal/etcd-tls/tls.key" -}}
{{- end -}}
{{- end -}}
etcd://{{ join "," .Values.metadata.endpoints }}/{{ .Values.metadata.cluster }}
{{- if $query }}?{{ join "&" $query }}{{ end -}}
{{- end -}}

{{- define "annheal.objectStoreUrl" -}}
{{- $query := list -}}
{{- if include "annheal.usesS3" . -}}
{{- with .Values.objectStore.s3 -}}
{{- if .endpoint -}}
{{- $query = append $query (printf "endpoint=%s" (urlquery .endpoint)) -}}
{{- end -}}
{{- if hasPrefix "http://" .endpoint -}}
{{- $query = append $query "allow_http=true" -}}
{{- end -}}
{{- if .region -}}
{{- $query = append $query (printf "region=%s" (urlquery .region)) -}}
{{- end -}}
{{- if .virtualHosted -}}
{{- $query = append $query "virtual_hosted=true" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{ .Values.objectStore.url }}{{ if $query }}?{{ join "&" $query }}{{ end -}}
{{- end -}}

{{- define "annheal.toml" -}}
metadata_url = {{ include "annheal.metadataUrl" . | quote }}
object_store_url = {{ include "annheal.objectStoreUrl" . | quote }}
log_level = {{ .Values.logLevel | quote }}
{{- range $key := keys .Values.settings | sortAlpha }}
{{- $value := get $.Values.settings $key }}
{{ $key }} = {{ if kindIs "string" $value }}{{ $value | quote }}{{ else if kindIs "float64" $value }}{{ if eq (floor $value) $value }}{{ printf "%.0f" $value }}{{ else }}{{ $value }}{{ end }}{{ else }}{{ $value }}{{ end }}
{{- end }}
{{- end -}}

{{/* Takes (dict "root" $ "config" .Values.coordinator "port" 7700 "dataDir" "/var/lib/annheal"). */}}
{{- define "annheal.env" -}}
{{- $root := .root -}}
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: POD_IP
  valueFrom:
    fieldRef:
      fieldPath: status.podIP
- name: ANNHEAL_CONFIG
  value: /etc/annheal/annheal.toml
- name: ANNHEAL_NODE_ID
  value: $(POD_NAME)
- name: ANNHEAL_LISTEN
  value: {{ printf "0.0.0.0:%d" (int .port) | quote }}
- name: ANNHEAL_DATA_DIR
  value: /var/lib/annheal
{{- if $root.Values.metrics.enabled }}
- name: ANNHEAL_METRICS_LISTEN
  value: {{ printf "0.0.0.0:%d" (int $root.Values.metrics.port) | quote }}
{{- end }}
{{- range $key := keys .config.settings | sortAlpha }}
{{- $value := get $.config.settings $key }}
- name: ANNHEAL_{{ upper $key }}
  value: {{ if kindIs "float64" $value }}{{ if eq (floor $value) $value }}{{ printf "%.0f" $value | quote }}{{ else }}{{ $value | toString | quote }}{{ end }}{{ else }}{{ $value | toString | quote }}{{ end }}
{{- end }}
# The root file system is read-only.
- name: HOME
  value: /tmp
- name: ANNHEAL_KERNEL_CACHE
  value: /tmp/annheal-kernels
{{- with $root.Values.metadata.auth }}
{{- if .existingSecret }}
- name: ANNHEAL_ETCD_USER
  valueFrom:
    secretKeyRef:
      name: {{ .existingSecret }}
      key: {{ .userKey }}
- name: ANNHEAL_ETCD_PASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ .existingSecret }}
      key: {{ .passwordKey }}
{{- end }}
{{- end }}
{{- if include "annheal.usesS3" $root }}
{{- with $root.Values.objectStore.s3.credentials }}
{{- if .existingSecret }}
- name: AWS_ACCESS_KEY_ID
  valueFrom:
    secretKeyRef:
      name: {{ .existingSecret }}
      key: {{ .accessKeyIdKey }}
- name: AWS_SECRET_ACCESS_KEY
  valueFrom:
    secretKeyRef:
      name: {{ .existingSecret }}
      key: {{ .secretAccessKeyKey }}
{{- end }}
{{- end }}
{{- end }}
{{- with .config.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "annheal.volumeMounts" -}}
- name: config
  mountPath: /etc/annheal/annheal.toml
  subPath: annheal.toml
  readOnly: true
- name: data
  mountPath: /var/lib/annheal
- name: tmp
  mountPath: /tmp
{{- if .Values.metadata.tls.enabled }}
- name: etcd-tls
  mountPath: /etc/annheal/etcd-tls
  readOnly: true
{{- end }}
{{- if include "annheal.usesFileStore" . }}
- name: objects
  mountPath: {{ trimPrefix "file://" .Values.objectStore.url | quote }}
{{- end }}
{{- end -}}

{{/* All volumes but "data", which differs by role. */}}
{{- define "annheal.volumes" -}}
- name: config
  configMap:
    name: {{ include "annheal.fullname" . }}
- name: tmp
  emptyDir:
    sizeLimit: 1Gi
{{- with .Values.metadata.tls }}
{{- if .enabled }}
- name: etcd-tls
  secret:
    secretName: {{ .secretName }}
    defaultMode: 0440
    items:
      - key: {{ .caKey }}
        path: ca.crt
      {{- if .certKey }}
      - key: {{ .certKey }}
        path: tls.crt
      - key: {{ .keyKey }}
        path: tls.key
      {{- end }}
{{- end }}
{{- end }}
{{- if include "annheal.usesFileStore" . }}
{{- if not .Values.objectStore.file.existingClaim }}
{{- fail "a file:// object store needs objectStore.file.existingClaim: a ReadWriteMany claim" }}
{{- end }}
- name: objects
  persistentVolumeClaim:
    claimName: {{ .Values.objectStore.file.existingClaim }}
{{- end }}
{{- end -}}
